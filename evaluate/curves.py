"""Loss curves of runs, from their logs."""

import io
import json
from collections.abc import Sequence
from pathlib import Path

LOG = "log.jsonl"


def read_log(folder: Path) -> list[dict[str, float]]:
    """The rows of a run's log, one per epoch; empty without one."""
    path = folder / LOG
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def loss_curves(folders: Sequence[Path], image_format: str) -> bytes:
    """A picture (`png` or `svg`) of every loss in the runs' logs over the epochs, a panel per loss."""
    from matplotlib.figure import Figure

    logs = {folder.name: read_log(folder) for folder in folders}
    losses = sorted(
        {name for rows in logs.values() for row in rows for name in row} - {"epoch", "step", "lr", "seconds"}
    )
    figure = Figure(figsize=(4.2 * max(1, len(losses)), 3.2), layout="constrained")
    names = sorted({name.rsplit("-s", 1)[0] for name in logs})
    for number, loss in enumerate(losses, start=1):
        axes = figure.add_subplot(1, len(losses), number)
        for run, rows in logs.items():
            name = run.rsplit("-s", 1)[0]
            points = [(row["epoch"], row[loss]) for row in rows if loss in row]
            if points:
                first = run == next(other for other in logs if other.rsplit("-s", 1)[0] == name)
                label = name if first else None
                axes.plot(*zip(*points, strict=True), color=f"C{names.index(name)}", linewidth=1, label=label)
        axes.set(title=loss, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format=image_format, dpi=120)
    return buffer.getvalue()
