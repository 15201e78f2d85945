"""Commands and code of the pages in docs/, run or at least understood by the command line."""

import json
import re
import shlex
import statistics

import click
import pytest
from clsp.cli.main import root
from clsp.cli.recipe import load_recipe
from clsp.evaluate.report.compare import control_of
from conftest import REPOSITORY

PAGES = sorted((REPOSITORY / "docs").glob("*.md"))


def commands(page) -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(), re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("clsp ")]


def write_recipes(page, folder) -> None:
    """Write the recipes of a page, blocks of TOML that begin with their name, into a folder."""
    for text, name in re.findall(r"```toml\n(# (\S+\.toml)\n.*?)```", page.read_text(), re.S):
        (folder / name).write_text(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one_and_its_settings_exist(page, monkeypatch, tmp_path):
    write_recipes(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    for words in commands(page):
        command: click.Command = root
        while isinstance(command, click.Group):
            name, *words = words
            command = command.get_command(click.Context(command), name)
            assert command is not None, name
        context = command.make_context("clsp", words, resilient_parsing=False)
        if context.params.get("recipe_name"):
            load_recipe(context.params["recipe_name"], context.params.get("overrides", ()))


def test_links_lead_somewhere():
    for page in [*PAGES, REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_idle_shares_of_the_page_follow_from_their_formula():
    rows = re.findall(
        r"^\| ([\d ]+) \| ([\d.]+) % \| ([\d.]+) % \| ([\d.]+) % \|$",
        (REPOSITORY / "docs" / "scale.md").read_text(),
        re.M,
    )
    assert len(rows) == 6
    for processes, *shares in rows:
        count = int(processes.replace(" ", ""))
        for shards, share in zip((1252, 2503, 10010), shares, strict=True):
            idle = 1 - shards / (count * -(-shards // count))
            assert float(share) == pytest.approx(100 * idle, abs=0.051)
            assert idle <= count / (shards + count)


def measured(name):
    return json.loads((REPOSITORY / "docs" / "results" / f"{name}.json").read_text())


def with_deviation(value) -> str:
    """Write a mean over seeds as the tables do."""
    mean = f"{value['mean']:.2f}"
    return mean if value["std"] is None else f"{mean} ± {value['std']:.2f}"


def test_the_tables_of_the_results_are_those_of_their_files():
    page, readme = ((REPOSITORY / path).read_text() for path in ("docs/results.md", "README.md"))
    for row in measured("demo")["summary"]:
        cells = {name: with_deviation(value) for name, value in row["metrics"].items()}
        names = ("linear.top1", "linear.labels_1", "linear.labels_5", "knn.k20", "knn.k200")
        shown = " | ".join(cells[name] for name in names)
        assert f" | {shown} |" in page
        assert all(cell in readme for cell in cells.values())
    for row in measured("minutes")["summary"]:
        cells = [
            f"{row['metrics'][name]['mean']:.1f}" for name in ("linear.top1", "knn.k20", "knn.k200")
        ]
        assert f"| {' | '.join([row['name'], *cells])} |" in page
    days = ("day", "day-far", "day-told")
    for row in [row for name in days for row in measured(name)["summary"]]:
        cells = []
        for name in ("top1", "labels_0.01", "labels_0.1"):
            cells.append(with_deviation(row["metrics"][f"linear.{name}"]))
        for name in ("k20", "k200"):
            cells.append(with_deviation(row["metrics"][f"knn.{name}"]))
        assert f"| {row['name']} |" in page
        assert f" | {' | '.join(cells)} |" in page


def with_interval(difference) -> str:
    """Write a difference as the tables do: bold where its interval leaves zero out."""
    text = f"{difference['mean']:+.2f}"
    if difference["t_interval"]:
        low, high = difference["t_interval"]
        text += f" [{low:+.2f}, {high:+.2f}]"
        if low * high > 0:
            text = f"**{text}**"
    return text.replace("-", "−")


def test_the_gains_of_the_last_comparison_are_those_of_its_file():
    results, short = (
        (REPOSITORY / "docs" / f"{name}.md").read_text() for name in ("results", "does-it-help")
    )
    short = short.replace("**", "")
    metrics = ("linear.top1", "linear.labels_0.01", "linear.labels_0.1", "knn.k20", "knn.k200")
    comparison = measured("day-told")
    names = [row["name"] for row in comparison["summary"]]
    in_short = ("@scratch", "", "@m2", "@own", "@among50", "@planted100")

    for row in comparison["differences"]:
        name = row["name"]
        if row["baseline"] != (control_of(name, names) or "simclr+augmentation"):
            continue

        # The page of results has a row of each less its control
        cells = [with_interval(row["metrics"][metric]) for metric in metrics]
        pairs = row["metrics"]["linear.top1"]["n"]
        assert f"| {name} | {row['baseline']} | {pairs} | {' | '.join(cells)} |" in results

        # The short page has three figures of the main rows
        if name in {f"simclr+shards{label}" for label in in_short}:
            shown = " | ".join([cells[0], cells[1], cells[3]]).replace("**", "")
            line = rf"^\| .* \| {pairs} \| .* \| {re.escape(shown)} \|$"
            assert re.search(line, short, re.M), name


def test_the_ratios_of_training_speed_are_those_of_their_file():
    page = (REPOSITORY / "docs" / "results.md").read_text()
    speed = measured("training-speed")["training"]["rates"]
    for rates in speed.values():
        assert f" | {statistics.median(rates):.2f} | " in page
    for side, other in (
        ("ours", "usual bf16"),
        ("ours, compiled", "usual bf16"),
        ("ours", "usual float32"),
        ("ours, compiled", "usual float32"),
        ("ours, 2 views", "lightly bf16, 2 views"),
        ("ours, 2 views", "lightly float32, 2 views"),
    ):
        ratio = statistics.median(a / b for a, b in zip(speed[side], speed[other], strict=True))
        assert f"{ratio:.2f} ×" in page
