"""The tables of a comparison: for people, in Markdown and in CSV."""

import csv
import io
from pathlib import Path
from typing import Any

from ...core import canonical_json, write_file
from .results import TASKS

HEADINGS = {
    "linear.top1": "linear top-1",
    "linear.top5": "linear top-5",
    "linear.mean_per_class": "linear mean per class",
    "knn.replica_best_on_test": "knn best k on test (replica)",
}
DIFFERENCES = (
    "Differences in points, paired by seed; in brackets Student's 95 % interval over the seeds: a difference is shown "
    "where it does not hold 0"
)
FEW_LABELS = "linear.labels_"


def table_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table: a row per run name, `mean ± std` per metric; then the published figures."""
    metrics = metric_order(comparison)
    headings = ["run", "seeds", *map(heading, metrics)]
    rows = [
        [
            row["name"],
            str(len(row["seeds"])),
            *(_cell(row["metrics"].get(metric)) for metric in metrics),
        ]
        for row in comparison["summary"]
    ]

    for number, row in enumerate(comparison["published"], start=1):
        figures = [
            f"{row['metrics'][metric]:.2f}" if metric in row["metrics"] else "–"
            for metric in metrics
        ]
        rows.append([f"{row['name']} (published) [{number}]", "1", *figures])

    return headings, rows


def difference_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the differences: `mean [low, high]` per metric in points."""
    metrics = metric_order(comparison)
    headings = ["run", "to", "seeds", *map(heading, metrics)]
    rows = []
    for row in comparison["differences"]:
        seeds = str(max(value["n"] for value in row["metrics"].values()))
        cells = [_difference(row["metrics"].get(metric)) for metric in metrics]
        rows.append([row["name"], row["baseline"], seeds, *cells])
    return headings, rows


def heading(metric: str) -> str:
    """Return a metric's name for people."""
    if metric.startswith(FEW_LABELS):
        amount = float(metric.removeprefix(FEW_LABELS))
        return (
            f"linear, {100 * amount:g} % of labels"
            if amount < 1
            else f"linear, {amount:g} per class"
        )
    return HEADINGS.get(metric, metric.replace(".", " "))


def footnotes(comparison: dict[str, Any]) -> list[str]:
    """What is different about each published figure, numbered as in the table."""
    return [
        f"[{number}] {row['source']}: {'; '.join(row['differences'])}."
        for number, row in enumerate(comparison["published"], start=1)
    ]


def metric_order(comparison: dict[str, Any]) -> list[str]:
    """Every metric of a comparison: by task in the order of the evaluations, the usual ones first, then by name."""
    found = {metric for row in comparison["summary"] for metric in row["metrics"]}
    headed = list(HEADINGS)

    return sorted(
        found,
        key=lambda metric: (
            TASKS.index(metric.split(".")[0]),
            headed.index(metric)
            if metric.startswith("linear.") and metric in headed
            else len(headed),
            metric,
        ),
    )


def _difference(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    interval = value.get("t_interval")
    return f"{value['mean']:+z.2f}" + (
        f" [{interval[0]:+z.2f}, {interval[1]:+z.2f}]" if interval else ""
    )


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.2f}" + (f" ± {value['std']:.2f}" if value["std"] is not None else "")


def markdown_table(comparison: dict[str, Any]) -> str:
    """The tables in Markdown: means, differences, and what the published figures differ in."""
    parts = [_markdown(*table_rows(comparison))]
    if comparison["differences"]:
        parts.append(f"{DIFFERENCES}:\n")
        parts.append(_markdown(*difference_rows(comparison)))
    if comparison["published"]:
        parts.append("\n".join(f"- {note}" for note in footnotes(comparison)) + "\n")
    return "\n".join(parts)


def _markdown(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(comparison: dict[str, Any]) -> str:
    """Everything in long form: `kind,name,seed,metric,value,std,low,high,n`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["kind", "name", "seed", "metric", "value", "std", "low", "high", "n"])

    for run in comparison["runs"]:
        for metric, value in run["metrics"].items():
            writer.writerow(["run", run["name"], run["seed"], metric, value, "", "", "", 1])

    for row in comparison["summary"]:
        for metric, value in row["metrics"].items():
            writer.writerow(
                ["mean", row["name"], "", metric, value["mean"], value["std"], "", "", value["n"]]
            )

    for row in comparison["differences"]:
        for metric, value in row["metrics"].items():
            low, high = value.get("t_interval") or ("", "")
            name = f"{row['name']} - {row['baseline']}"
            writer.writerow(
                ["difference", name, "", metric, value["mean"], "", low, high, value["n"]]
            )

    for row in comparison["published"]:
        for metric, value in row["metrics"].items():
            writer.writerow(["published", row["name"], "", metric, value, "", "", "", 1])

    return buffer.getvalue()


def write_comparison(comparison: dict[str, Any], out: Path) -> None:
    """Write `results.json`, and from it `results.md` and `results.csv`."""
    write_file(out / "results.json", canonical_json(comparison))
    write_file(out / "results.md", markdown_table(comparison).encode())
    write_file(out / "results.csv", csv_table(comparison).encode())
