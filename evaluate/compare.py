"""Comparison: result files of several runs to means over seeds, paired differences and published figures."""

import csv
import io
import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..shards import InputError, canonical_json, write_file
from .published import published_rows
from .results import TASKS, read_results

HEADINGS = {
    "linear.top1": "linear top-1",
    "linear.top5": "linear top-5",
    "linear.mean_per_class": "linear mean per class",
    "knn.replica_best_on_test": "knn best k on test (replica)",
}
RESAMPLES = 10_000


def compare_runs(folders: Iterable[Path], baseline: str | None = None) -> dict[str, Any]:
    """`{"runs", "summary", "differences", "published"}`, accuracies in percent.

    `summary` has per run name the mean, std and number of every metric; the standard deviation is the sample's (n - 1)
    and absent for a single seed.

    Args:
        baseline: the run name that the differences are to; by default the first one without a `+`, else the first.

    Raises:
        InputError: no results, runs that a mean must not mix, or no run of the baseline's name.
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
    published = published_rows(runs)
    for run in runs:
        del run["recipe"]
    differences = _differences(by_name, baseline)
    return {"runs": runs, "summary": summary, "differences": differences, "published": published}


def _differences(by_name: dict[str, list[dict[str, Any]]], baseline: str | None) -> list[dict[str, Any]]:
    """Per run name the mean difference to the baseline over the seeds that both have, with its interval."""
    if baseline is not None and baseline not in by_name:
        raise InputError(f"--baseline {baseline}: no such run, found {', '.join(by_name)}")
    base = baseline or next((name for name in by_name if "+" not in name), next(iter(by_name)))
    of_base = {run["seed"]: run["metrics"] for run in by_name[base]}
    rows = []
    for name, runs in by_name.items():
        pairs = [(run["metrics"], of_base[run["seed"]]) for run in runs if run["seed"] in of_base]
        metrics = {}
        for metric in dict.fromkeys(metric for own, _ in pairs for metric in own):
            values = [own[metric] - other[metric] for own, other in pairs if metric in own and metric in other]
            if values:
                interval = bootstrap_interval(values)
                metrics[metric] = {"mean": statistics.fmean(values), "interval": interval, "n": len(values)}
        if name != base and metrics:
            rows.append({"name": name, "baseline": base, "metrics": metrics})
    return rows


def bootstrap_interval(values: list[float]) -> list[float] | None:
    """The 95 % percentile interval of the mean over resampled seeds, None below two.

    With the three to five seeds that are usual it is narrower than the truth (by a third at three); read it as the
    least that the difference varies.
    """
    if len(values) < 2:
        return None
    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    return np.percentile(np.asarray(values)[draws].mean(axis=1), [2.5, 97.5]).tolist()


def _check_comparable(runs: list[dict[str, Any]]) -> None:
    """Refuse two runs of one name and seed, and one name with two shard sets or protocols: a mean would hide it."""
    seen: dict[tuple[str, int], str] = {}
    same: dict[tuple[str, str], Any] = {}
    for run in runs:
        other = seen.setdefault((run["name"], run["seed"]), run["folder"])
        if other != run["folder"]:
            raise InputError(f"{other} and {run['folder']} are both {run['name']} seed {run['seed']}; leave one out")
        for fact, words in (("data", "shard sets; compare runs on one set"), ("protocol", "linear protocols")):
            if same.setdefault((run["name"], fact), run[fact]) != run[fact]:
                raise InputError(f"runs of {run['name']} used different {words}")


def _run(folder: Path) -> dict[str, Any]:
    results = read_results(folder)
    metrics = {
        f"{result['task']}.{name}": value
        for result in results
        for name, value in result["result"].items()
        if isinstance(value, int | float)
    }
    facts = {key: results[0][key] for key in ("name", "seed", "set", "checkpoint")}
    facts["data"] = results[0].get("data") or results[0]["set"]  # a set's ID changes when it gets scores or a layer
    facts["recipe"] = results[0].get("recipe")
    facts["protocol"] = next((result["result"].get("protocol") for result in results), None)
    return {"folder": folder.name, **facts, "metrics": metrics}


def table_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table: a row per run name, `mean ± std` per metric; then the published figures."""
    metrics = metric_order(comparison)
    headings = ["run", "seeds", *(HEADINGS.get(metric, metric.replace(".", " ")) for metric in metrics)]
    rows = [
        [row["name"], str(len(row["seeds"])), *(_cell(row["metrics"].get(metric)) for metric in metrics)]
        for row in comparison["summary"]
    ]
    for number, row in enumerate(comparison["published"], start=1):
        figures = [f"{row['metrics'][metric]:.2f}" if metric in row["metrics"] else "–" for metric in metrics]
        rows.append([f"{row['name']} (published) [{number}]", "1", *figures])
    return headings, rows


def difference_rows(comparison: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the differences: `mean [low, high]` per metric in points."""
    metrics = [metric for metric in metric_order(comparison) if metric != "transfer.mean"]
    headings = ["run", "to", "seeds", *(HEADINGS.get(metric, metric.replace(".", " ")) for metric in metrics)]
    rows = []
    for row in comparison["differences"]:
        seeds = str(max(value["n"] for value in row["metrics"].values()))
        cells = [_difference(row["metrics"].get(metric)) for metric in metrics]
        rows.append([row["name"], row["baseline"], seeds, *cells])
    return headings, rows


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
            headed.index(metric) if metric.startswith("linear.") and metric in headed else len(headed),
            metric,
        ),
    )


def _difference(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    interval = value["interval"]
    return f"{value['mean']:+.2f}" + (f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if interval else "")


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return "–"
    return f"{value['mean']:.2f}" + (f" ± {value['std']:.2f}" if value["std"] is not None else "")


def markdown_table(comparison: dict[str, Any]) -> str:
    """The tables in Markdown: means, differences, and what the published figures differ in."""
    parts = [_markdown(*table_rows(comparison))]
    if comparison["differences"]:
        parts.append("Differences in points, paired by seed, with the 95 % bootstrap interval over seeds:\n")
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
            writer.writerow(["mean", row["name"], "", metric, value["mean"], value["std"], "", "", value["n"]])
    for row in comparison["differences"]:
        for metric, value in row["metrics"].items():
            low, high = value["interval"] or ("", "")
            name = f"{row['name']} - {row['baseline']}"
            writer.writerow(["difference", name, "", metric, value["mean"], "", low, high, value["n"]])
    for row in comparison["published"]:
        for metric, value in row["metrics"].items():
            writer.writerow(["published", row["name"], "", metric, value, "", "", "", 1])
    return buffer.getvalue()


def write_comparison(comparison: dict[str, Any], out: Path) -> None:
    """Write `results.json`, and from it `results.md` and `results.csv`."""
    write_file(out / "results.json", canonical_json(comparison))
    write_file(out / "results.md", markdown_table(comparison).encode())
    write_file(out / "results.csv", csv_table(comparison).encode())
