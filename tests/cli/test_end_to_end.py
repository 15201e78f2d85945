"""The whole pipeline through the command line, on digits and on real-sized images, as the README says it."""

import base64
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
from clsp.shards import ShardSet, verify_set
from conftest import REPOSITORY, save_random_model
from PIL import Image

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, re.S) for line in block.strip().splitlines()]
SMALL_NETWORKS = {
    "diffusion.steps": 4,
    "diffusion.batch_size": 16,
    "sampler.steps": 2,
    "pretrain.epochs": 2,
    "pretrain.batch_size": 16,
    "pretrain.backbone_kwargs": "{channels=[8,8,8,8],layers=[1,1,1,1]}",
    "pretrain.projector_hidden": 16,
    "pretrain.workers": 0,
    "linear_eval.epochs": 2,
    "linear_eval.milestones": "[1]",
}


def settings(values: dict) -> list[str]:
    return [f"--set={key}={value}" for key, value in values.items()]


def make(*arguments: str, args: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the repository's Makefile in another folder, with this environment in the place of a new one."""
    binaries = Path(sys.executable).parent
    command = [
        "make",
        "-f",
        REPOSITORY / "Makefile",
        f"BIN={binaries}",
        "-o",
        "setup",
        *arguments,
        f"ARGS={' '.join(args)}",
    ]
    environment = {**os.environ, "MAKEFLAGS": "", "MAKELEVEL": ""}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`make demo` with tiny networks and one seed: every stage real."""
    folder = tmp_path_factory.mktemp("demo")
    args = [*settings({**SMALL_NETWORKS, "anchors.limit": 64, "shards.records": 32}), "--seeds=1"]
    found = make("demo", args=args, cwd=folder)
    assert found.returncode == 0, found.stdout + found.stderr
    return folder / "runs" / "demo", args, found.stdout


def test_demo_writes_table_pictures_and_page(demo):
    root, _, output = demo
    names = ["simclr", "simclr+augmentation", "simclr+shards"]
    assert all(name in output for name in names) and "linear top-1" in output
    results = json.loads((root / "results.json").read_text())
    assert [row["name"] for row in results["summary"]] == names
    assert all(0 <= run["metrics"]["linear.top1"] <= 100 for run in results["runs"])
    assert len({run["set"] for run in results["runs"]}) == 1 and verify_set(root / "shards", deep=True) == []
    shards = ShardSet(root / "shards")
    assert shards.candidates == 4 and results["runs"][0]["set"] == shards.set_id
    for name in ("contact-sheet.png", "curves.png"):
        assert np.asarray(Image.open(root / name).convert("L")).std() > 10, f"{name} is blank"


def test_report_is_self_contained(demo):
    page = (demo[0] / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert len(sources) == 2 and all(source.startswith("data:image/png;base64,") for source in sources)
    for source in sources:
        image = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert min(image.size) > 50
    assert "http" not in re.sub(r"data:[^\"]*", "", page) and "simclr+shards" in page


def test_demo_again_uses_what_is_finished_and_a_lost_stage_is_made_again(demo):
    root, args, _ = demo
    before = (root / "results.json").stat().st_mtime_ns
    assert make("demo", args=args, cwd=root.parents[1]).returncode == 0
    assert (root / "results.json").stat().st_mtime_ns == before
    lost = root / "stages" / "knn-simclr-s0.json"
    result = root / "pretrain" / "simclr-s0" / "knn.json"
    good = json.loads(result.read_text())["result"]
    lost.unlink()
    result.unlink()
    found = make("demo", args=args, cwd=root.parents[1])
    assert found.returncode == 0 and "knn-simclr-s0" in found.stdout and "linear-eval-simclr-s0" not in found.stdout
    assert json.loads(result.read_text())["result"] == good
    found = make("demo", args=[*args, "--set=sampler.steps=3"], cwd=root.parents[1])
    assert found.returncode != 0 and "another recipe" in found.stderr


@pytest.mark.parametrize("gpus", [1, 2])
def test_shards_pretrain_and_linear_eval_in_a_row(gpus, tmp_path):
    args = settings({**SMALL_NETWORKS, "anchors.limit": 64, "shards.records": 16, "shards.candidates": 2})
    for target in ("shards", "pretrain", "linear-eval"):
        found = make(target, f"GPUS={gpus}", args=args, cwd=tmp_path)
        assert found.returncode == 0, found.stdout + found.stderr
    run = tmp_path / "runs" / "digits" / "pretrain" / "simclr+shards-s0"
    assert json.loads((run / "linear.json").read_text())["result"]["protocol"] == "clsp"
    made = [json.loads(path.read_text())["made"] for path in (tmp_path / "runs/digits/shards/commits").rglob("*.json")]
    assert {facts["processes"] for facts in made} == {gpus}


def test_bad_input_stops_make_before_processes_are_launched(tmp_path, shard_set):
    found = make("pretrain", "GPUS=2", f"SHARDS={shard_set}", args=["--set=pretrain.batch_size=100"], cwd=tmp_path)
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 2 and "batch_size is 100" in lines[0] and len(lines) == 2  # ours and make's own
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def images_of_cifar_size(tmp_path_factory):
    """A folder with train.parquet and test.parquet in the layout of the hub's CIFAR-10."""
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 20)):
        contents = []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
            contents.append({"bytes": buffer.getvalue(), "path": None})
        labels = [number % 10 for number in range(count)]
        datasets.Dataset.from_dict({"img": contents, "label": labels}).to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.mark.slow
def test_every_other_command_of_the_readme(images_of_cifar_size, tmp_path_factory):
    """In the README's order and in one folder, off the hub and with small networks; two processes for four GPUs."""
    cwd = tmp_path_factory.mktemp("readme")
    model = save_random_model(cwd / "ddpm", 32)
    small = {
        **SMALL_NETWORKS,
        "anchors.path": images_of_cifar_size,
        "diffusion.path": model,
        "shards.records": 32,
        "shards.candidates": 2,
    }
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = []
    for line in COMMANDS:
        if line in ("make demo", "make test"):  # the demo has a test of its own, and this is `make test`
            continue
        if line.startswith("make"):
            words = [word.replace("GPUS=4", "GPUS=2") for word in line.split()[1:]]
            found = make(*words, args=settings(small), cwd=cwd)
        else:
            takes_recipe = "--recipe" in line
            line = line.removeprefix(".venv/bin/")
            command = f"{line} {' '.join(map(repr, settings(small)))}" if takes_recipe else line
            found = subprocess.run(
                command, shell=True, cwd=cwd, env=environment, capture_output=True, text=True, check=False
            )
        assert found.returncode == 0, f"{line}\n{found.stdout}{found.stderr}"
        ran.append(line)
    assert len(ran) == 10 and (cwd / "runs" / "cifar10" / "report.html").exists()


def test_the_readme_reads_a_set_without_clsp(shard_set, monkeypatch, tmp_path):
    code = re.search(r"```python\n(.*?)```", README, re.S)[1]
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "runs" / "digits" / "shards").symlink_to(shard_set)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(code, names)
    assert len(names["pairs"]) == 40 and len(list(names["records"])) == 16


CIFAR10 = REPOSITORY.parent / "shared" / "cifar10"


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR10.is_dir(), reason="the real CIFAR-10 images are not beside the checkout")
def test_the_cifar10_recipe_on_real_images(clsp, tmp_path):
    """64 anchors with a U-Net of the recipe's own design (35.7 M weights), trained for two steps; every command."""
    short = {
        **SMALL_NETWORKS,
        "anchors.path": CIFAR10 / "train.parquet",
        "anchors.limit": 64,
        "diffusion.path": '""',
        "diffusion.steps": 2,
        "diffusion.batch_size": 4,
        "diffusion.workers": 0,
        "sampler.steps": 1,
        "sampler.micro_batch": 32,
        "shards.candidates": 1,
        "linear_eval.train_limit": 200,
        "linear_eval.test_limit": 100,
    }
    options = ["--recipe", "cifar10", *settings(short)]
    root, run = tmp_path / "shards", tmp_path / "run"
    evaluated = ["--checkpoint", run, "--out", run]
    for command in (
        ["diffusion", "train", *options, "--out", tmp_path / "diffusion"],
        ["shards", "plan", *options, "--out", root],
        ["shards", "make", *options, "--out", root],
        ["shards", "status", root],
        ["shards", "info", root],
        ["shards", "verify", root, "--deep"],
        ["shards", "preview", root, "--out", tmp_path / "sheet.png"],
        ["pretrain", *options, "--shards", root, "--out", run],
        ["linear-eval", *options, *evaluated],
        ["knn", *options, *evaluated],
        ["compare", run, "--out", tmp_path],
        ["report", tmp_path, "--out", tmp_path / "report.html"],
    ):
        found = clsp(*command)
        assert found.returncode == 0, f"{command}\n{found.stderr}"
    config = json.loads((tmp_path / "diffusion" / "unet" / "config.json").read_text())
    assert config["block_out_channels"] == [128, 256, 256, 256]
    assert json.loads((run / "linear.json").read_text())["set"] == ShardSet(root).set_id
