"""Encode the anchors into latents, once: all processes share the work, and finished parts outlive a stop or a kill.

No process waits at a barrier, whose time limit a large data set would exceed, but for the files of the others.

Shape legend: B anchors of a batch, V versions (plain, mirrored), C channels, H, W pixels, h, w the sides of a latent.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..core import (
    Report,
    StopRequested,
    WorkError,
    canonical_json,
    stop_deferred,
    to_device,
    wait_for,
)
from ..shards import ImageSource
from ..shards.reading.worker_batches import worker_batches
from .autoencoder import Autoencoder
from .config import AUTOENCODER_BATCH
from .encoded_anchors import FOLDER, EncodedAnchors, PartRecord
from .latent import LatentRecord, LatentSpace
from .pixels import to_model_range
from .training_folder import anchor_facts

USUAL_DEVIATION = (0.25, 4.0)
"""The noise schedule is made for values of deviation 1."""

Progress = Callable[[], AbstractContextManager[Report]]
"""Makes what shows how far the encoding is, when it begins."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LatentTraining:
    """Holds what a latent model is trained on: the autoencoder, the anchors' latents and what they are.

    >>> import tempfile
    >>> from clsp.generate.example import make_example_autoencoder
    >>> from clsp.shards import AnchorsConfig
    >>> anchors = ImageSource(AnchorsConfig(path="digits", limit=20))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     training = encode_anchors(anchors, make_example_autoencoder(), Path(folder), flip=True)
    ...     latents_BVChw = training.encoded.rows([3, 19])
    >>> latents_BVChw.shape, len(training.space.ranges)
    (torch.Size([2, 2, 4, 4, 4]), 4)
    """

    autoencoder: Autoencoder
    encoded: EncodedAnchors
    record: LatentRecord

    @property
    def space(self) -> LatentSpace:
        """Return the space of the model."""
        return LatentSpace(self.autoencoder, self.record.ranges)


def encode_anchors(
    anchors: ImageSource,
    autoencoder: Autoencoder,
    out: Path,
    flip: bool,
    rank: int = 0,
    world_size: int = 1,
    workers: int = 0,
    progress: Progress | None = None,
) -> LatentTraining:
    """Encode the anchors into `out`, this process its parts of them; what is there already stays.

    Args:
        autoencoder: on the device to compute on.
        flip: encode the mirror images too.
        workers: decoding processes.
        progress: shows how far this process is.

    Raises:
        WorkError: latents are not finite, naming the anchors; or another process did not make its own.
        StopRequested: somebody asked to stop; finished parts stay.
    """
    # Whose latents are there
    encoded = EncodedAnchors(out / FOLDER, len(anchors), flip)
    owner = _owner(anchors, autoencoder, flip)
    if rank == 0:
        encoded.claim(owner)
    wait_for(lambda: encoded.is_owned_by(owner), "latents")

    # This process's parts
    mine = range(rank, encoded.parts, world_size)
    missing = [part for part in mine if not encoded.is_whole(part)]
    if missing:
        with progress() if progress else nullcontext() as report:
            _encode_parts(anchors, autoencoder, encoded, missing, workers, report)

    # All parts, those of other processes too
    records = []
    for part in range(encoded.parts):
        records.append(wait_for(partial(encoded.read_record, part), "latents"))

    record = _latent_record(autoencoder, anchors.size, records)
    if rank == 0:
        _warn_of_deviation(autoencoder, record)

    return LatentTraining(autoencoder, encoded, record)


def _owner(anchors: ImageSource, autoencoder: Autoencoder, flip: bool) -> bytes:
    """Return what the latents depend on."""
    facts = {**anchor_facts(anchors), "autoencoder": autoencoder.digest, "flip": flip}
    return canonical_json(facts)


@dataclass(frozen=True)
class _Batch:
    """Names the anchors of a call of the autoencoder, by their places."""

    part: int
    places: range
    is_last: bool
    """Of its part."""


def _batches_of(encoded: EncodedAnchors, part: int) -> list[_Batch]:
    places = encoded.places_of(part)
    starts = range(0, len(places), AUTOENCODER_BATCH)
    return [
        _Batch(part, places[start : start + AUTOENCODER_BATCH], start == starts[-1])
        for start in starts
    ]


class _ImageReader:
    """Reads the images of a batch, `(B, 3, H, W)` in [-1, 1]."""

    def __init__(self, anchors: ImageSource):
        self.anchors = anchors

    def __call__(self, batch: _Batch) -> torch.Tensor:
        return to_model_range(np.stack([self.anchors[place].image for place in batch.places]))


def _encode_parts(
    anchors: ImageSource,
    autoencoder: Autoencoder,
    encoded: EncodedAnchors,
    parts: Sequence[int],
    workers: int,
    report: Report | None,
) -> None:
    """Encode the anchors of some parts; each part is written when it is finished."""
    order = [batch for part in parts for batch in _batches_of(encoded, part)]
    total = sum(len(batch.places) for batch in order)
    done = 0
    collected: list[np.ndarray] = []

    reading = worker_batches(_ImageReader(anchors), order, workers)
    with stop_deferred() as stop_requested, reading as batches:
        for images_BCHW, batch in zip(batches, order, strict=True):
            latents_BVChw = _encode(autoencoder, images_BCHW, encoded.flip)
            _check_finite(latents_BVChw, autoencoder, anchors, batch)
            collected.append(latents_BVChw.numpy())

            if batch.is_last:
                encoded.write(batch.part, np.concatenate(collected))
                collected.clear()

            done += len(batch.places)
            if report:
                report(done, total)
            if stop_requested():
                raise StopRequested


def _encode(autoencoder: Autoencoder, images_BCHW: torch.Tensor, flip: bool) -> torch.Tensor:
    """Return the latents `(B, V, C, h, w)` float16 of images, and with flips of their mirror images."""
    images_BCHW = to_device(images_BCHW, next(autoencoder.net.parameters()).device)
    versions = [images_BCHW, images_BCHW.flip(-1)] if flip else [images_BCHW]
    latents = [autoencoder.encode(version_BCHW) for version_BCHW in versions]
    return torch.stack(latents, dim=1).half().cpu()


def _check_finite(
    latents_BVChw: torch.Tensor, autoencoder: Autoencoder, anchors: ImageSource, batch: _Batch
) -> None:
    is_finite_B = latents_BVChw.flatten(1).isfinite().all(dim=1).tolist()
    broken = [
        anchors.key(place)
        for place, is_finite in zip(batch.places, is_finite_B, strict=True)
        if not is_finite
    ]
    if broken:
        raise WorkError(
            f"the autoencoder {autoencoder.config.origin} gives latents that are not finite in float16 for the "
            f"anchors {', '.join(broken)}; use another autoencoder, or leave these images out"
        )


def _latent_record(
    autoencoder: Autoencoder, size: int, parts: Sequence[PartRecord]
) -> LatentRecord:
    """Return what the latents of all parts are."""
    values = sum(part.values for part in parts)
    mean_C = np.sum([part.total for part in parts], axis=0) / values
    squares_C = np.sum([part.squares for part in parts], axis=0) / values
    lowest_C = np.min([part.lowest for part in parts], axis=0)
    highest_C = np.max([part.highest for part in parts], axis=0)

    config = autoencoder.config
    return LatentRecord(
        autoencoder=config.location,
        digest=autoencoder.digest,
        scaling=config.scaling,
        shift=config.shift,
        channels=config.channels,
        factor=config.factor,
        size=size,
        ranges=tuple(zip(lowest_C.tolist(), highest_C.tolist(), strict=True)),
        deviations=tuple(np.sqrt(np.maximum(squares_C - mean_C**2, 0)).tolist()),
    )


def _warn_of_deviation(autoencoder: Autoencoder, record: LatentRecord) -> None:
    """Say where the latents are scaled so badly that the noise schedule does not fit them."""
    deviation = float(np.sqrt(np.mean(np.square(record.deviations))))
    lowest, highest = USUAL_DEVIATION
    if not lowest <= deviation <= highest:
        log.warning(
            "clsp: the latents of %s have a deviation of %.3g, expected about 1; "
            "a better scaling_factor in its config.json is %.4g",
            autoencoder.config.origin,
            deviation,
            record.scaling / max(deviation, 1e-12),
        )
