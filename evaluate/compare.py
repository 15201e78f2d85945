"""Comparison: result files of several runs to mean ± std over seeds per run name."""

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..shards import InputError, canonical_json, write_file
from .results import TASKS, read_results

HEADINGS = {"linear.top1": "linear top-1", "linear.top5": "linear top-5"}


def compare_runs(folders: Iterable[Path]) -> dict[str, Any]:
    """`{"runs": […], "summary": […]}`: every run's accuracies in percent, and per name their mean, std and number.

    The standard deviation is the sample's (n - 1) and absent for a single seed.
    """
    runs = [_run(folder) for folder in folders]
    _check_comparable(runs)
    by_name: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        by_name[run["name"]].append(run)
    summary = []
    for name, members in by_name.items():
        metrics = {}
        for metric in dict.fromkeys(metric for run in members for metric in run["metrics"]):
            values = [run["metrics"][metric] for run in members if metric in run["metrics"]]
            spread = statistics.stdev(values) if len(values) > 1 else None
            metrics[metric] = {"mean": statistics.fmean(values), "std": spread, "n": len(values)}
        summary.append({"name": name, "seeds": sorted(run["seed"] for run in members), "metrics": metrics})
    return {"runs": runs, "summary": summary}


def _check_comparable(runs: list[dict[str, Any]]) -> None:
    """Refuse two runs of one name and seed, and runs of one name on different shard sets: a mean would hide it."""
    seen: dict[tuple[str, int], str] = {}
    sets: dict[str, str | None] = {}
    for run in runs:
        other = seen.setdefault((run["name"], run["seed"]), run["folder"])
        if other != run["folder"]:
            raise InputError(f"{other} and {run['folder']} are both {run['name']} seed {run['seed']}; leave one out")
        if sets.setdefault(run["name"], run["set"]) != run["set"]:
            raise InputError(f"runs of {run['name']} used different shard sets; compare runs on one set")


def _run(folder: Path) -> dict[str, Any]:
    results = read_results(folder)
    metrics = {
        f"{result['task']}.{name}": value
        for result in results
        for name, value in result["result"].items()
        if isinstance(value, int | float)
    }
    facts = {key: results[0][key] for key in ("name", "seed", "set", "checkpoint")}
    return {"folder": folder.name, **facts, "metrics": metrics}


def table_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table: a row per run name, `mean ± std` per metric."""
    metrics = metric_order(comparison)
    headings = ["run", "seeds", *(HEADINGS.get(metric, metric.replace(".", " ")) for metric in metrics)]
    rows = [
        [row["name"], str(len(row["seeds"])), *(_cell(row["metrics"].get(metric)) for metric in metrics)]
        for row in comparison["summary"]
    ]
    return headings, rows


def metric_order(comparison: dict[str, Any]) -> list[str]:
    """Every metric of a comparison, by task in the order of the evaluations, then by name."""
    found = {metric for row in comparison["summary"] for metric in row["metrics"]}
    return sorted(found, key=lambda metric: (TASKS.index(metric.split(".")[0]), metric))


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.2f}" + (f" ± {value['std']:.2f}" if value["std"] is not None else "")


def markdown_table(comparison: dict[str, Any]) -> str:
    """The table in Markdown."""
    headings, rows = table_rows(comparison)
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_comparison(comparison: dict[str, Any], out: Path) -> None:
    """Write `results.json` and `results.md`."""
    write_file(out / "results.json", canonical_json(comparison))
    write_file(out / "results.md", markdown_table(comparison).encode())
