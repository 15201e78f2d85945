"""The anchors' latents, encoded once and kept beside the model that is trained on them.

OUT/latents/
    latents.json             whose latents these are: the autoencoder's digest, the images', flips
    part-000000.npy          (P, 1 or 2, C, h, w) float16: of each anchor, and with flips of its mirror image
    part-000000.json         the part's SHA-256 and the range of its values, written after it

Processes share the parts out; a part whose record fits is there, and is not made again. No process waits at a barrier,
whose time limit a large data set would exceed, but for the records of the others.

Shape legend: N anchors, B of a batch, P of a part, V versions (plain and mirrored), C channels, H, W pixels, h, w the
sides of a latent.
"""

import hashlib
import io
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ..core import (
    Report,
    StopRequested,
    WorkError,
    canonical_json,
    exact_precision,
    sha256_file,
    stop_deferred,
    to_device,
    write_file,
)
from ..shards import ImageSource
from ..shards.reading.worker_batches import worker_batches
from .autoencoder import Autoencoder
from .config import AUTOENCODER_BATCH
from .latent import LatentRecord, LatentSpace
from .pixels import to_model_range

FOLDER, OWNER = "latents", "latents.json"
PARTS, SMALLEST_PART, LARGEST_PART = 64, 8, 1024
"""As many parts as that, where they are neither too small nor too large."""
SECONDS_BETWEEN_POLLS = 0.2
USUAL_DEVIATION = (0.25, 4.0)
"""The noise schedule is made for values of deviation 1."""

Progress = Callable[[], AbstractContextManager[Report]]
"""Makes what shows how far the encoding is, when it begins."""

log = logging.getLogger(__name__)


class PartRecord(BaseModel):
    """Says that a part of the latents is there, and what values it has, per channel."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    lowest: tuple[float, ...]
    highest: tuple[float, ...]
    total: tuple[float, ...]
    squares: tuple[float, ...]
    """The sum of the squares, as `total` is that of the values."""
    values: int
    """Values of a channel."""


@dataclass
class EncodedAnchors:
    """Gives the latents of anchors, from files that are mapped and not read into memory.

    >>> encoded = EncodedAnchors(Path("model/latents"), count=2000, flip=True)
    >>> encoded.part_size, encoded.parts, encoded.place(1999)
    (31, 65, (64, 15))
    """

    folder: Path
    count: int
    flip: bool
    """There are latents of the mirror images too, which are not the mirrored latents."""
    _mapped: dict[int, np.ndarray] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # a worker maps the files anew

    @property
    def part_size(self) -> int:
        """Return the anchors of a part: a function of their number, so that any number of processes make the same."""
        return min(LARGEST_PART, max(SMALLEST_PART, self.count // PARTS))

    @property
    def parts(self) -> int:
        """Return the number of parts."""
        return -(-self.count // self.part_size)

    def places_of(self, part: int) -> range:
        """Return the places of a part's anchors."""
        first = part * self.part_size
        return range(first, min(first + self.part_size, self.count))

    def place(self, anchor: int) -> tuple[int, int]:
        """Return the part of an anchor, and its row there."""
        return divmod(anchor, self.part_size)

    def array(self, part: int) -> Path:
        """Return the file of a part."""
        return self.folder / f"part-{part:06d}.npy"

    def record(self, part: int) -> Path:
        """Return the file that says that a part is there."""
        return self.folder / f"part-{part:06d}.json"

    def rows(self, anchors: Sequence[int]) -> torch.Tensor:
        """Return the latents `(B, V, C, h, w)` float32 of anchors."""
        rows = []
        for anchor in anchors:
            part, row = self.place(anchor)
            if part not in self._mapped:
                self._mapped[part] = np.load(self.array(part), mmap_mode="r")
            rows.append(self._mapped[part][row])

        return torch.from_numpy(np.stack(rows)).float()


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
        WorkError: latents are not finite, naming the anchors.
        StopRequested: somebody asked to stop; finished parts stay.
    """
    # Whose latents are there
    encoded = EncodedAnchors(out / FOLDER, len(anchors), flip)
    owner = _owner(anchors, autoencoder, flip)
    if rank == 0:
        _claim(encoded.folder, owner)
    _wait_for(lambda: _is_owned(encoded.folder, owner))

    # This process's parts
    mine = range(rank, encoded.parts, world_size)
    missing = [part for part in mine if not _is_whole(encoded, part)]
    if missing:
        with progress() if progress else nullcontext() as report:
            _encode_parts(anchors, autoencoder, encoded, missing, workers, report)

    # All parts, those of other processes too
    for part in range(encoded.parts):
        _wait_for(encoded.record(part).exists)
    records = [_read_record(encoded, part) for part in range(encoded.parts)]
    record = _latent_record(autoencoder, anchors.size, records)
    if rank == 0:
        _warn_of_deviation(autoencoder, record)

    return LatentTraining(autoencoder, encoded, record)


def _owner(anchors: ImageSource, autoencoder: Autoencoder, flip: bool) -> bytes:
    """Return what the latents depend on."""
    images = {"anchors": anchors.digest, "size": anchors.size, "used": len(anchors)}
    facts = {**images, **anchors.pixel_record, "autoencoder": autoencoder.digest, "flip": flip}
    return canonical_json(facts)


def _claim(folder: Path, owner: bytes) -> None:
    """Write down whose latents a folder has; those of other settings, which came to no model, make way."""
    if not _is_owned(folder, owner):
        shutil.rmtree(folder, ignore_errors=True)
        write_file(folder / OWNER, owner)


def _is_owned(folder: Path, owner: bytes) -> bool:
    try:
        return (folder / OWNER).read_bytes() == owner
    except FileNotFoundError:
        return False


def _wait_for(is_there: Callable[[], bool]) -> None:
    while not is_there():
        time.sleep(SECONDS_BETWEEN_POLLS)


def _is_whole(encoded: EncodedAnchors, part: int) -> bool:
    """Return True if a part is there with the very bytes that its record names."""
    record = _read_record(encoded, part)
    if record is None:
        return False
    try:
        if sha256_file(encoded.array(part)) == record.sha256:
            return True
    except FileNotFoundError:
        pass

    # Nobody may take it to be there while it is made again
    encoded.record(part).unlink()
    return False


def _read_record(encoded: EncodedAnchors, part: int) -> PartRecord | None:
    try:
        return PartRecord.model_validate_json(encoded.record(part).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


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
                _write_part(encoded, batch.part, np.concatenate(collected))
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
    with torch.inference_mode(), exact_precision():
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


def _write_part(encoded: EncodedAnchors, part: int, latents_PVChw: np.ndarray) -> None:
    """Write a part, and then its record."""
    buffer = io.BytesIO()
    np.save(buffer, latents_PVChw)
    content = buffer.getvalue()
    write_file(encoded.array(part), content)

    # Its values, per channel
    values_PVChw = latents_PVChw.astype(np.float64)
    over = (0, 1, 3, 4)
    record = PartRecord(
        sha256=hashlib.sha256(content).hexdigest(),
        lowest=tuple(values_PVChw.min(axis=over).tolist()),
        highest=tuple(values_PVChw.max(axis=over).tolist()),
        total=tuple(values_PVChw.sum(axis=over).tolist()),
        squares=tuple(np.square(values_PVChw).sum(axis=over).tolist()),
        values=values_PVChw.size // values_PVChw.shape[2],
    )
    write_file(encoded.record(part), canonical_json(record.model_dump()))


def _latent_record(
    autoencoder: Autoencoder, size: int, records: Sequence[PartRecord | None]
) -> LatentRecord:
    """Return what the latents of all parts are."""
    parts = [record for record in records if record is not None]
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
