"""Loss curves of runs, from their logs."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

LOG, RUN = "log.jsonl", "run.json"


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's log, one per epoch; empty without one."""
    path = folder / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run_name(folder: Path) -> str:
    """The name of a run, the same for all seeds."""
    path = folder / RUN
    return str(json.loads(path.read_text())["name"]) if path.exists() else folder.name


def loss_curves(folders: Sequence[Path], image_format: str) -> bytes:
    """A picture (`png` or `svg`) of the runs' losses over the epochs: a panel per loss, a colour per name."""
    from matplotlib.figure import Figure

    runs = [(run_name(folder), read_log(folder)) for folder in folders]
    names = list(dict.fromkeys(name for name, _ in runs))
    losses = sorted({key for _, rows in runs for row in rows for key in row} - {"epoch", "step", "lr", "seconds"})
    figure = Figure(figsize=(4.2 * max(1, len(losses)), 3.2), layout="constrained")
    for number, loss in enumerate(losses, start=1):
        axes = figure.add_subplot(1, len(losses), number)
        labelled: set[str] = set()
        for name, rows in runs:
            points = [(row["epoch"], row[loss]) for row in rows if loss in row]
            if points:
                label = None if name in labelled else name
                labelled.add(name)
                axes.plot(*zip(*points, strict=True), color=f"C{names.index(name)}", linewidth=1, label=label)
        axes.set(title=loss, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=image_format, dpi=120)
    return buffer.getvalue()
