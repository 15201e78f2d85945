"""Progress: a bar with ETA on a terminal, plain lines in a log, nothing on other ranks than the first."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..core import computes_bf16, launched_rank
from ..shards import AnchorsConfig, ImageSource, Manifest
from ..shards.editing.extend import unfinished_layer

SECONDS_BETWEEN_LINES = 15.0


def say(message: str) -> None:
    """Print a line, once for all ranks; file names that are no text become so."""
    if launched_rank() == 0:
        print(message.encode(errors="replace").decode(), flush=True)


def say_if_emulated(key: str, bf16: bool) -> None:
    """Say what it costs where a recipe's key asks for bfloat16 and the machine has to emulate it."""
    if bf16 and not computes_bf16():
        cost = "which takes about ten times as long as float32"
        say(f"note: {key} asks for bfloat16, and this machine can only emulate it, {cost}")


def say_if_too_few(neighbours: Sequence[int], images: int) -> None:
    """Say that a vote of more neighbours than there are training images is one of all of these."""
    for k in neighbours:
        if k > images:
            what = f"k{k} is the vote of all of them"
            say(f"note: knn.k has {k} neighbours, there are {images} training images; {what}")


def say_unfinished(root: Path, manifest: Manifest) -> None:
    """Say that a sealed set has a layer in the making, which is left out."""
    layer = unfinished_layer(root, manifest)
    if layer:
        say(
            f"note: {root} has an unfinished layer ({layer}), which is left out; clsp shards status says how far it is"
        )


def open_anchors(config: AnchorsConfig) -> ImageSource:
    """Open a source of images, and show how far the walk of a large folder is."""
    with walking() as report:
        return ImageSource(config, report)


def walking() -> "ProgressReport":
    """Return what shows how far the walk of a large folder is."""
    return ProgressReport("looking for images", "files", stays=False)


class ProgressReport:
    """Shows how far a piece of work is: a context manager to call with (done, total, metrics).

    Args:
        title: what is being done.
        unit: what is counted.
        stays: False removes the bar from the terminal behind the work.
    """

    def __init__(self, title: str, unit: str, stays: bool = True):
        self.title = title
        self.unit = unit
        self.stays = stays
        self._bar: Progress | None = None
        self._task: Any = None
        self._started = self._last = 0.0
        self._first: tuple[int, float] | None = None

    def __enter__(self) -> "ProgressReport":
        self._started = self._last = time.monotonic()
        if sys.stderr.isatty() and launched_rank() == 0:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(
                *columns,
                TextColumn("{task.fields[metrics]}"),
                console=Console(stderr=True),
                transient=not self.stays,
            )
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=None, metrics="")

        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def __call__(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        """Show that `done` of `total` are finished; a total of 0 is not known."""
        text = " ".join(f"{name} {value:.4g}" for name, value in (metrics or {}).items())
        now = time.monotonic()
        if self._first is None:
            self._first = (done, now)

        if self._bar:
            self._bar.update(self._task, completed=done, total=total or None, metrics=text)
            return

        if launched_rank() == 0 and (done == total or now - self._last >= SECONDS_BETWEEN_LINES):
            self._last = now
            share = f"{done}/{total}" if total else str(done)
            eta = self._eta(done, total, now)
            print(f"{self.title}: {share} {self.unit}{eta} {text}".rstrip(), flush=True)

    def _eta(self, done: int, total: int, now: float) -> str:
        """Return how long the work took, or how long it still takes at the pace since the first call."""
        if not total:
            return ""
        if done >= total:
            return f" in {now - self._started:.0f} s"

        first_done, first_time = self._first or (done, now)
        if done <= first_done:
            return ""
        seconds = (total - done) * (now - first_time) / (done - first_done)
        return f", {seconds:.0f} s left"
