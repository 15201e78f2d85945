"""Write the tables of a comparison: for people, in Markdown and in CSV."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ...core import canonical_json, write_file
from ...core.run_name import LABELS, RunName
from ..probes.registry import column, heading
from .compare import Comparison, Difference, SummaryRow
from .published import PublishedRow

ABSENT = "–"
OVER_DRAWS = "†"
"""Marks a deviation that is over the draws of few labels instead of seeds."""
BY_LABELS = f"+{LABELS}: a measure that uses labels chose the candidates, so these runs are not self-supervised."
"""Says what the last part of a run's name means."""
DIFFERENCES = (
    "Differences in points, paired by seed; in brackets Student's 95 % interval over the seeds: a difference is shown "
    "where it does not hold 0"
)
CSV_COLUMNS = ("kind", "name", "seed", "metric", "value", "std", "low", "high", "n")


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows: a row per run name, `mean ± std` per metric; then the published figures."""
    metrics = metric_order(comparison)
    headings = ["run", "seeds"]
    headings += [heading(metric) for metric in metrics]

    rows = []
    for row in comparison.summary:
        cells = [_mean_cell(row, metric) for metric in metrics]
        rows.append([row.name, str(len(row.seeds)), *cells])

    for number, published in enumerate(comparison.published, start=1):
        cells = [_published_cell(published, metric) for metric in metrics]
        rows.append([f"{published.name} (published) [{number}]", "1", *cells])

    return headings, rows


def difference_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Return headings and rows of the differences: `mean [low, high]` per metric in points."""
    metrics = metric_order(comparison)
    headings = ["run", "to", "seeds"]
    headings += [heading(metric) for metric in metrics]

    rows = []
    for row in comparison.differences:
        seeds = max(difference.n for difference in row.metrics.values())
        cells = [_difference_cell(row.metrics.get(metric)) for metric in metrics]
        rows.append([row.name, row.baseline, str(seeds), *cells])

    return headings, rows


def footnotes(comparison: Comparison) -> list[str]:
    """Say what the marks in the table mean.

    These are runs of one name with different settings, labels that chose candidates, deviations over draws, and what is
    different about published figures.
    """
    notes = []
    for row in comparison.mixed:
        more = f" and {len(row.settings) - 1} more" if len(row.settings) > 1 else ""
        notes.append(
            f"{row.name}: its runs differ in more than their seeds: {row.folder} and {row.other} in "
            f"pretrain.{row.settings[0]}{more}; give one of the two another name, by pretrain.label."
        )

    if any(RunName.parse(row.name).by_labels for row in comparison.summary):
        notes.append(BY_LABELS)

    if any(row.std_of_draws for row in comparison.summary):
        notes.append(f"{OVER_DRAWS} one seed: the deviation is over the draws of the labels.")

    for number, row in enumerate(comparison.published, start=1):
        notes.append(f"[{number}] {row.source}: {'; '.join(row.differences)}.")

    return notes


def metric_order(comparison: Comparison) -> list[str]:
    """List every metric of a comparison in the order of the table's columns."""
    found: set[str] = set()
    for row in comparison.summary:
        found.update(row.metrics)

    return sorted(found, key=column)


def _mean_cell(row: SummaryRow, metric: str) -> str:
    """Return `mean ± std`: over the seeds or, marked, of a single seed over the draws of the labels."""
    value = row.metrics.get(metric)
    if value is None:
        return ABSENT
    if value.std is not None:
        return f"{value.mean:.2f} ± {value.std:.2f}"
    if metric in row.std_of_draws:
        return f"{value.mean:.2f} ± {row.std_of_draws[metric]:.2f} {OVER_DRAWS}"
    return f"{value.mean:.2f}"


def _published_cell(row: PublishedRow, metric: str) -> str:
    if metric not in row.metrics:
        return ABSENT
    return f"{row.metrics[metric]:.2f}"


def _difference_cell(value: Difference | None) -> str:
    if value is None:
        return ABSENT
    if value.t_interval is None:
        return f"{value.mean:+z.2f}"
    low, high = value.t_interval
    return f"{value.mean:+z.2f} [{low:+z.2f}, {high:+z.2f}]"


def markdown_table(comparison: Comparison) -> str:
    """Return the tables in Markdown: means, differences, and footnotes."""
    parts = [_markdown(*table_rows(comparison))]

    if comparison.differences:
        parts.append(f"{DIFFERENCES}:\n")
        parts.append(_markdown(*difference_rows(comparison)))

    notes = [f"- {note}\n" for note in footnotes(comparison)]
    if notes:
        parts.append("".join(notes))

    return "\n".join(parts)


def _markdown(headings: list[str], rows: Sequence[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def csv_table(comparison: Comparison) -> str:
    """Return everything in long form: `kind,name,seed,metric,value,std,low,high,n`."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)

    # Runs and their means
    for run in comparison.runs:
        for metric, value in run.metrics.items():
            writer.writerow(["run", run.name, run.seed, metric, value, "", "", "", 1])

    for row in comparison.summary:
        for metric, mean in row.metrics.items():
            writer.writerow(["mean", row.name, "", metric, mean.mean, mean.std, "", "", mean.n])

    # Differences
    for row in comparison.differences:
        name = f"{row.name} - {row.baseline}"
        for metric, difference in row.metrics.items():
            low, high = difference.t_interval or ("", "")
            writer.writerow(
                ["difference", name, "", metric, difference.mean, "", low, high, difference.n]
            )

    # Published figures
    for row in comparison.published:
        for metric, value in row.metrics.items():
            writer.writerow(["published", row.name, "", metric, value, "", "", "", 1])

    return buffer.getvalue()


def write_comparison(comparison: Comparison, out: Path) -> None:
    """Write `results.json`, and from it `results.md` and `results.csv`."""
    write_file(out / "results.json", canonical_json(comparison.model_dump()))
    write_file(out / "results.md", markdown_table(comparison).encode())
    write_file(out / "results.csv", csv_table(comparison).encode())
