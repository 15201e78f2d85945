"""Draw how a comparison came about: positives over the diffusion model's training, accuracy over the runs' epochs.

    python benchmarks/draw_curves.py collect --diffusion runs/day/curve/curve.json runs/day/told/*-s* --out curves.json
    python benchmarks/draw_curves.py draw curves.json --results results.json --agreement 50.3 --out curves.png

The first command gathers the figures: those of `benchmarks/diffusion_curve.py`, and of each run's log the kNN accuracy,
which `pretrain.knn_epochs` measures while it trains. The second draws them, and with the `results.json` of `clsp
compare` the accuracy over the label agreement of planted sets, too.
"""

import argparse
import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from clsp.evaluate.features.checkpoint import read_run
from clsp.evaluate.report.charts import read_log
from clsp.evaluate.report.compare import CONTROL, control_of
from matplotlib.axes import Axes
from matplotlib.figure import Figure

KNN = "knn"
PLANTED = re.compile(r"simclr\+shards@planted(\d+)")
GENERATED = "simclr+shards"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)

    collecting = commands.add_parser("collect", help="gather the figures in one file")
    collecting.add_argument("runs", type=Path, nargs="*", metavar="RUN")
    collecting.add_argument("--diffusion", type=Path, required=True, help="a curve.json")
    collecting.add_argument("--out", type=Path, required=True)
    collecting.set_defaults(act=collect)

    drawing = commands.add_parser("draw", help="draw them")
    drawing.add_argument("curves", type=Path)
    drawing.add_argument("--results", type=Path, required=True, help="of clsp compare")
    drawing.add_argument(
        "--agreement", type=float, required=True, help="of the generated positives, in percent"
    )
    drawing.add_argument("--out", type=Path, required=True)
    drawing.set_defaults(act=draw)

    options = parser.parse_args()
    options.act(options)


def collect(options: argparse.Namespace) -> None:
    """Write one file with the curve of the diffusion model and the accuracy of every run over its epochs."""
    diffusion = json.loads(options.diffusion.read_text(encoding="utf-8"))

    runs = []
    for folder in options.runs:
        run = read_run(folder)
        accuracies = knn_over_epochs(folder)
        if run and accuracies:
            runs.append({"name": run["name"], "seed": run["seed"], KNN: accuracies})

    runs.sort(key=lambda run: (run["name"], run["seed"]))
    curves = {"diffusion": diffusion, "runs": runs}
    options.out.write_text(json.dumps(curves, indent=1) + "\n", encoding="utf-8")


def knn_over_epochs(folder: Path) -> list[tuple[int, float]]:
    """Return the epochs after which a run was measured, with its accuracy in percent."""
    rows = read_log(folder)
    return [(row["epoch"], row[KNN]) for row in rows if row.get(KNN) is not None]


def draw(options: argparse.Namespace) -> None:
    """Draw a row of panels for the diffusion model, and another for the runs."""
    curves = json.loads(options.curves.read_text(encoding="utf-8"))
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 3).ravel()

    # The diffusion model
    rows = curves["diffusion"]["rows"]
    agreement, hardness, distance = panels[:3]
    plot_rows(agreement, rows, "agreement", 100)
    agreement.axhline(50, color="grey", linestyle=":", label="the gate")
    agreement.set(title="candidates of their anchor's class", ylabel="%")
    plot_rows(hardness, rows, "cosine", 1, "candidates")
    plot_rows(hardness, rows, "view_cosine", 1, "ordinary views")
    hardness.set(title="cosine to the anchor")
    plot_rows(distance, rows, "frechet_distance", 1)
    distance.set(title="Fréchet distance")
    for axes in panels[:3]:
        axes.set(xlabel="steps of the diffusion model")

    # The runs
    accuracy, gain, planted = panels[3:]
    plot_accuracy(accuracy, curves["runs"])
    plot_gain(gain, curves["runs"])
    results = json.loads(options.results.read_text(encoding="utf-8"))
    plot_planted(planted, results, options.agreement)

    for axes in panels:
        axes.grid(alpha=0.25)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize="x-small", framealpha=0.7, edgecolor="none")

    # Below the panel, since its curves are many
    accuracy.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize="x-small", frameon=False
    )

    figure.savefig(options.out, dpi=110)


def plot_rows(
    axes: Axes, rows: list[dict[str, float]], key: str, factor: float, label: str = ""
) -> None:
    """Plot a measure of the positives over the diffusion model's steps."""
    steps = [row["step"] for row in rows if key in row]
    values = [factor * row[key] for row in rows if key in row]
    axes.plot(steps, values, marker=".", label=label or None)


def accuracies_by_epoch(runs: list[dict[str, Any]]) -> dict[str, dict[int, dict[int, float]]]:
    """Return accuracies by name, epoch and seed."""
    found: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for run in runs:
        for epoch, value in run[KNN]:
            found[run["name"]][epoch][run["seed"]] = value

    return {name: dict(sorted(by_epoch.items())) for name, by_epoch in found.items()}


def plot_accuracy(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Plot the mean accuracy of every name over the epochs."""
    for name, by_epoch in accuracies_by_epoch(runs).items():
        means = [np.mean(list(by_seed.values())) for by_seed in by_epoch.values()]
        axes.plot(list(by_epoch), means, label=name)

    axes.set(title="kNN accuracy", xlabel="epochs", ylabel="%")


def plot_gain(axes: Axes, runs: list[dict[str, Any]]) -> None:
    """Plot the mean difference to the third-view control over the epochs, of the seeds that both have."""
    found = accuracies_by_epoch(runs)

    for name, by_epoch in found.items():
        control = control_of(name, found)
        if control in (None, name):
            continue

        epochs = []
        gains = []
        for epoch, by_seed in by_epoch.items():
            others = found[control].get(epoch, {})
            both = by_seed.keys() & others.keys()
            if both:
                epochs.append(epoch)
                gains.append(np.mean([by_seed[seed] - others[seed] for seed in both]))
        axes.plot(epochs, gains, label=name)

    axes.axhline(0, color="grey", linestyle=":")
    axes.set(title="less the third view", xlabel="epochs", ylabel="points of kNN")


def plot_planted(axes: Axes, results: dict[str, Any], agreement: float) -> None:
    """Plot the gain of planted sets over the share of their candidates that are of the anchor's class.

    Args:
        agreement: of generated candidates, whose gain is marked there, in percent.
    """
    metrics = {
        "linear.top1": "linear",
        "linear.labels_0.01": "1 % of labels",
        "knn.k20": "kNN 20",
    }
    gains = {}
    for row in results["differences"]:
        if row["baseline"] == f"simclr+{CONTROL}":
            gains[row["name"]] = row["metrics"]

    for number, (metric, label) in enumerate(metrics.items()):
        points = []
        for name, found in gains.items():
            planted = PLANTED.fullmatch(name)
            if planted:
                points.append((int(planted[1]), found[metric]["mean"]))

        points.sort()
        colour = f"C{number}"
        axes.plot(*zip(*points, strict=True), marker=".", color=colour, label=label)
        axes.plot(agreement, gains[GENERATED][metric]["mean"], marker="*", color=colour, ms=11)

    axes.axhline(0, color="grey", linestyle=":")
    axes.set(title="real images; ★ generated", xlabel="of the anchor's class, %", ylabel="points")


if __name__ == "__main__":
    main()
