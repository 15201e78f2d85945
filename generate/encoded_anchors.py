"""The anchors' latents in files beside the model that is trained on them, mapped and not read into memory.

OUT/latents/
    latents.json             whose latents these are: the autoencoder's digest, the images', flips
    part-000000.npy          (P, 1 or 2, C, h, w) float16: of each anchor, and with flips of its mirror image
    part-000000.json         the part's SHA-256 and the range of its values, written after it

Shape legend: B anchors of a batch, P of a part, V versions (plain, mirrored), C channels, h, w the sides of a latent.
"""

import hashlib
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from ..core import canonical_json, remove_temporaries, sha256_file, write_file

FOLDER, OWNER = "latents", "latents.json"
PARTS, SMALLEST_PART, LARGEST_PART = 64, 8, 1024
"""As many parts as that, where they are neither too small nor too large."""
OPEN_PARTS = 128
"""Files that are mapped at a time: each holds a file descriptor, of which a system may allow no more than 256."""


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
            rows.append(np.array(self._map(part)[row]))  # a view would keep the file open

        return torch.from_numpy(np.stack(rows)).float()

    def _map(self, part: int) -> np.ndarray:
        """Return a part's latents `(P, V, C, h, w)` float16, mapped; the part mapped first makes way for it."""
        if part not in self._mapped:
            if len(self._mapped) >= OPEN_PARTS:
                self._mapped.pop(next(iter(self._mapped)))
            self._mapped[part] = np.load(self.array(part), mmap_mode="r")

        return self._mapped[part]

    def is_owned_by(self, owner: bytes) -> bool:
        """Return True if the folder says that its latents are those of `owner`."""
        try:
            return (self.folder / OWNER).read_bytes() == owner
        except FileNotFoundError:
            return False

    def claim(self, owner: bytes) -> None:
        """Write down whose latents the folder has; those of other settings, which came to no model, make way."""
        if not self.is_owned_by(owner):
            shutil.rmtree(self.folder, ignore_errors=True)
            write_file(self.folder / OWNER, owner)

        remove_temporaries(self.folder)  # of a process that was killed

    def read_record(self, part: int) -> PartRecord | None:
        """Return what is said of a part; None where nothing is said, or nothing that can be read."""
        try:
            return PartRecord.model_validate_json(self.record(part).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def is_whole(self, part: int) -> bool:
        """Return True if a part is there with the very bytes that its record names; else remove the record."""
        record = self.read_record(part)
        if record is not None and self._has_bytes(part, record.sha256):
            return True

        # Nobody may take it to be there while it is made again
        self.record(part).unlink(missing_ok=True)
        return False

    def _has_bytes(self, part: int, sha256: str) -> bool:
        try:
            return sha256_file(self.array(part)) == sha256
        except FileNotFoundError:
            return False

    def write(self, part: int, latents_PVChw: np.ndarray) -> None:
        """Write a part, and then its record."""
        buffer = io.BytesIO()
        np.save(buffer, latents_PVChw)
        content = buffer.getvalue()
        write_file(self.array(part), content)

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
        write_file(self.record(part), canonical_json(record.model_dump()))
