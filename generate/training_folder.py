"""The folder of a training of stage 1: whose it is, its log, and the file that says that it has finished."""

import contextlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core import RECIPE, InputError, json_line, owner_of, saving, set_aside, write_file
from ..shards import ImageSource
from .autoencoder import Autoencoder
from .clusters import ClusterEncoder

CHECKPOINT, IDENTITY, LOG, SAMPLES = "checkpoint.pt", "training.json", "log.jsonl", "samples"
PIPELINE, AUTOENCODER = "model_index.json", "config.json"
"""The files whose presence means «finished»: of a diffusion model, of an autoencoder."""


@dataclass(frozen=True)
class TrainingDigests:
    """Holds the digests of the networks that a training uses; empty where it uses none.

    >>> TrainingDigests.of(None, None)
    TrainingDigests(encoder='', autoencoder='')
    """

    encoder: str = ""
    """Of the encoder whose features are clustered."""
    autoencoder: str = ""

    @classmethod
    def of(
        cls, encoder: ClusterEncoder | None, autoencoder: Autoencoder | None
    ) -> "TrainingDigests":
        """Return the digests of the networks that there are."""
        return cls(
            encoder=encoder.digest if encoder else "",
            autoencoder=autoencoder.digest if autoencoder else "",
        )


NO_DIGESTS = TrainingDigests()


@dataclass(frozen=True)
class TrainingFolder:
    """Names a folder to train in, and what makes a training this one and no other."""

    out: Path
    kind: str
    """What the folder holds, for messages."""
    identity: bytes
    """The content of the file that names the folder's owner."""
    result: str
    """The file whose presence means «finished»."""
    own_files: tuple[str, ...] = ()
    """Further files of a training, which make way with it."""

    def is_finished(self, may_replace: bool = True) -> bool:
        """Return True if the folder holds the finished result, False if the training can start or go on there.

        Args:
            may_replace: a training with other settings that came to no checkpoint, not finite or killed before, makes
                way.

        Raises:
            InputError: it holds something else.
        """
        out = self.out
        found = owner_of(out, IDENTITY, self.kind)
        is_another = found is not None and found != self.identity
        if is_another and not (may_replace and self._is_without_result()):
            raise InputError(
                f"{out} holds a model trained with other settings ({out / IDENTITY}); choose another --out"
            )

        return (out / self.result).exists()

    def _is_without_result(self) -> bool:
        return not any((self.out / name).exists() for name in (CHECKPOINT, PIPELINE, AUTOENCODER))

    def claim(self, recipe: bytes) -> None:
        """Write down whose the folder is; what other settings have left there was found to be without a result.

        Args:
            recipe: the content of `recipe.toml`; empty: there is none.
        """
        path = self.out / IDENTITY
        if path.exists() and path.read_bytes() != self.identity:
            set_aside(self.out, (RECIPE, LOG, SAMPLES, *self.own_files), IDENTITY)

        write_file(path, self.identity)
        if recipe:
            write_file(self.out / RECIPE, recipe)

    def put_result(self, save: Callable[[Path], object]) -> None:
        """Put the result in its place: the file that says «finished» last, and then the checkpoint away.

        Args:
            save: writes the files of the result into a new folder.

        Raises:
            WorkError: they cannot be written.
        """
        # Write everything beside
        staging = self.out / ".result.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        with saving(staging), contextlib.redirect_stdout(None):
            save(staging)

        # Move it into its place
        for path in staging.iterdir():
            if path.name != self.result:
                shutil.rmtree(self.out / path.name, ignore_errors=True)
                path.rename(self.out / path.name)

        (staging / self.result).rename(self.out / self.result)
        shutil.rmtree(staging)
        (self.out / CHECKPOINT).unlink(missing_ok=True)


def anchor_facts(anchors: ImageSource) -> dict[str, Any]:
    """Return what makes a training one on these images; what is as by default is left out, as it was in older ones."""
    facts = {"anchors": anchors.digest, "size": anchors.size, **anchors.pixel_record}
    if anchors.config.resize != "crop":
        facts["resize"] = anchors.config.resize
    if len(anchors) < anchors.source_count:
        facts["anchors_used"] = len(anchors)

    return facts


def begun_precision(out: Path) -> str | None:
    """Return the precision of the training that was begun in `out`, None if there is none."""
    path = out / IDENTITY
    return json.loads(path.read_text(encoding="utf-8")).get("precision") if path.exists() else None


def write_log_row(out: Path, step: int, metrics: dict[str, float]) -> None:
    """Add the metrics after so many steps to the log."""
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json_line({"step": step, **metrics}))


def cut_log(out: Path, step: int) -> None:
    """Keep the rows up to `step`: a resumed run writes the later ones again."""
    if (out / LOG).exists():
        lines = (out / LOG).read_text(encoding="utf-8").splitlines()
        write_file(
            out / LOG, "".join(f"{line}\n" for line in lines if _step_of(line) <= step).encode()
        )


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short when the process was killed
        return math.inf
