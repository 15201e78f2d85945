"""Draw charts: curves, histograms and maps, as PNG or as SVG that follows the colours of the page."""

import io
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..features.checkpoint import read_run, run_name

LOG = "log.jsonl"
NO_LOSSES = {"epoch", "step", "lr", "seconds", "waited"}
INK = "#010203"  # takes the place of `currentColor`, which matplotlib does not know
BINS = 40
PANEL = (3.6, 2.8)
PER_ROW = 3
Points = Mapping[str, list[float]]
"""A map of features: `x`, `y` and `label` of every image."""


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the rows of a run's log, one per epoch; empty without one."""
    path = folder / LOG
    if not path.exists():
        return []

    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def name_of(folder: Path) -> str:
    """Return the name of the run in a folder, that of the folder where there is none."""
    run = read_run(folder)
    return run_name(run) if run else folder.name


def training_curves(folders: Sequence[Path], image_format: str) -> bytes:
    """Draw the runs' losses (and kNN accuracy, where it was measured meanwhile) over the epochs: a colour per name."""
    # The runs, and what their logs hold
    runs = [(name_of(folder), read_log(folder)) for folder in folders]
    names = list(dict.fromkeys(name for name, _ in runs))

    logged: set[str] = set()
    for _, rows in runs:
        for row in rows:
            logged.update(row)
    measures = sorted(logged - NO_LOSSES)

    with _panels(len(measures)) as (figure, panels):
        # A panel per measure, a line per run
        lines: dict[str, Any] = {}
        for axes, measure in zip(panels, measures, strict=False):
            for name, rows in runs:
                measured = [row for row in rows if row.get(measure) is not None]
                if measured:
                    epochs = [row["epoch"] for row in measured]
                    values = [row[measure] for row in measured]
                    colour = f"C{names.index(name)}"
                    (line,) = axes.plot(epochs, values, color=colour, linewidth=1)
                    lines.setdefault(name, line)

            axes.set(title=measure, xlabel="epoch")
            axes.locator_params(axis="x", integer=True)

        # One legend for all panels
        figure.legend(
            list(lines.values()),
            list(lines),
            loc="outside lower center",
            ncols=PER_ROW,
            fontsize="small",
        )

        return _saved(figure, image_format)


def score_histograms(scores: Mapping[str, np.ndarray], image_format: str) -> bytes:
    """Draw a histogram per score, `name → values`."""
    with _panels(len(scores)) as (figure, panels):
        for axes, (name, values) in zip(panels, scores.items(), strict=False):
            axes.hist(values[np.isfinite(values)].ravel(), BINS, color="C0")
            axes.set(title=name, ylabel="candidates")

        return _saved(figure, image_format)


def cosine_histograms(shares: Mapping[str, list[float]], image_format: str) -> bytes:
    """Draw cosines to the anchor of candidates and of ordinary views, shares per bin (the paper's figure)."""
    with _panels(1, (6.5, 3)) as (figure, panels):
        for name, values in shares.items():
            edges = np.linspace(-1, 1, len(values) + 1)
            panels[0].stairs(values, edges, fill=True, alpha=0.5, label=name)

        panels[0].set(xlabel="cosine to the anchor", ylabel="share")
        panels[0].legend()
        return _saved(figure, image_format)


def feature_maps(maps: Mapping[str, Points], image_format: str) -> bytes:
    """Draw a map per run name, a colour per class."""
    with _panels(len(maps), (3.6, 3.4)) as (figure, panels):
        for axes, (name, points) in zip(panels, maps.items(), strict=False):
            axes.scatter(
                points["x"], points["y"], c=points["label"], cmap="tab20", s=6, linewidths=0
            )
            axes.set(title=name, xticks=[], yticks=[])
            axes.grid(visible=False)

        return _saved(figure, image_format)


@contextmanager
def _panels(count: int, size: tuple[float, float] = PANEL):
    """Give a figure with `count` axes (at least one), in rows of three."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # Everything that has the colour of the text
    inked = (
        "text.color",
        "axes.edgecolor",
        "axes.labelcolor",
        "xtick.color",
        "ytick.color",
        "grid.color",
    )
    style: Any = dict.fromkeys(inked, INK)

    # The same bytes every day, no frames
    style |= {
        "svg.fonttype": "none",
        "svg.hashsalt": "clsp",
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.facecolor": "none",
        "legend.frameon": False,
    }

    # The figure
    count = max(1, count)
    rows = -(-count // PER_ROW)
    columns = min(PER_ROW, count)

    with mpl.rc_context(style):
        figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
        panels = [figure.add_subplot(rows, columns, number + 1) for number in range(count)]
        yield figure, panels


def _saved(figure: Any, image_format: str) -> bytes:
    """Return a figure's file; SVG without what changes from one day to the next, in the colour of the text."""
    buffer = io.BytesIO()
    if image_format != "svg":
        figure.savefig(buffer, format=image_format, dpi=120)
        return buffer.getvalue()

    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    element = text[text.index("<svg") :]
    bare = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    return bare.replace(INK, "currentColor").encode()
