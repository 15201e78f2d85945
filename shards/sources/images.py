"""Open anchors, the images that positives are made for, from any source that `datasets` reads."""

import copy
import hashlib
import io
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, overload

import numpy as np
from PIL import Image, ImageOps

from ...core import InputError, pixel_digest
from .config import AnchorsConfig
from .digits import DigitsSource
from .errors import SourceError
from .huggingface import HFSource


class UnreadableAnchorError(InputError):
    """Reports an image of the source that is empty or does not decode."""


@dataclass(frozen=True)
class Anchor:
    """Holds one image of the source, `(H, W, 3)` uint8 RGB; `digest` identifies what the source has.

    >>> anchor = ImageSource(AnchorsConfig(path="digits"))[3]
    >>> anchor.key, anchor.label, anchor.image.shape
    ('train_00000003', 3, (8, 8, 3))
    """

    index: int
    key: str
    image: np.ndarray
    label: int | None
    digest: str


SPLIT = re.compile(r"[A-Za-z0-9_][!-.0-~]{0,63}")
"""Splits whose names fit the member names of a tar: printable ASCII without slashes."""


class AnchorLookup(Protocol):
    """Gives anchors by number: those of a source, or of a set by position."""

    def __getitem__(self, index: int, /) -> Anchor: ...


class Source(Protocol):
    """Offers encoded bytes or an array per index, a label or None, and the licence of the images."""

    name: str
    licence: str
    fingerprint: str
    """Changes with the content; empty where there is none."""

    def __len__(self) -> int: ...

    def content(self, index: int) -> bytes | np.ndarray:
        """Return the encoded bytes of an image or, in sources without, its pixels."""
        ...

    def label(self, index: int) -> int | None:
        """Return the class number, or None without one."""
        ...


class ImageSource(Sequence[Anchor]):
    """Reads the anchors of a recipe in source order, decoded one at a time.

    Keys are `{split}_{index:08d}`. `digest` is over the identities of all anchors, so it names the source; it and
    `source_count` are those of the whole source also where anchors have been left out.

    Raises:
        InputError: the source is missing, has no such split or no image column; or, on access, an image does not
            decode or does not have the expected geometry.

    >>> anchors = ImageSource(AnchorsConfig(path="digits", split="test", limit=10))
    >>> len(anchors), anchors.size
    (10, 8)
    >>> [anchor.label for anchor in anchors[:3]]
    [4, 9, 4]
    """

    def __init__(self, config: AnchorsConfig):
        self.config = config
        if not SPLIT.fullmatch(config.split):
            raise SourceError(
                "split", f"{config.split!r}; expected up to 64 printable ASCII letters, no slash"
            )

        self.source: Source = (
            DigitsSource(config.split)
            if config.path == "digits"
            else HFSource(config.path, config.split, config.label)
        )
        self.source_count = min(len(self.source), config.limit or len(self.source))
        if self.source_count == 0:
            raise SourceError(
                "path", f"{config.path} split {config.split} has no images, expected at least one"
            )

        self.indices_N = np.arange(self.source_count)
        self.size: int = config.size or self._first_size()
        self._digest: str | None = None

    def without(self, skipped: Collection[int]) -> "ImageSource":
        """Leave out the anchors with the source indices `skipped`; the others keep their keys.

        Raises:
            InputError: nothing is left.
        """
        rest = copy.copy(self)
        rest.indices_N = np.setdiff1d(self.indices_N, np.fromiter(skipped, np.int64))
        if len(rest) == 0:
            raise SourceError(
                "path", f"none of the {len(self)} images of {self.config.path} decodes"
            )

        return rest

    def __len__(self) -> int:
        return len(self.indices_N)

    @overload
    def __getitem__(self, index: int) -> Anchor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Anchor]: ...
    def __getitem__(self, index: int | slice) -> Anchor | list[Anchor]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)

        key = self.key(index)
        index = int(self.indices_N[index])
        content = self._content(index)
        image = self._fit(self._decode(content, index), index)
        return Anchor(index, key, image, self.source.label(index), identity(content))

    def __iter__(self) -> Iterator[Anchor]:
        return (self[place] for place in range(len(self)))

    def key(self, place: int) -> str:
        """Return the anchor's name in shard sets and in the noise: no dots, unique."""
        return f"{self.config.split.replace('.', '_')}_{self.indices_N[place]:08d}"

    def spread(self, count: int) -> list[int]:
        """Return up to `count` places, evenly over all anchors."""
        return np.linspace(0, len(self) - 1, min(count, len(self))).astype(int).tolist()

    def why_unreadable(self, place: int) -> str | None:
        """Return the reason why an anchor does not decode, or None where it does."""
        index = int(self.indices_N[place])
        try:
            self._decode(self._content(index), index)
        except UnreadableAnchorError as error:
            return str(error)
        return None

    @property
    def digest(self) -> str:
        """Return the 128-bit BLAKE2b over the identities of all anchors, in order; computed when first asked for."""
        if self._digest is None:
            self._digest = self._compute_digest()
        return self._digest

    def use_known_digest(self, digest: str) -> None:
        """Take a digest that was computed earlier for this very source, so that its images are not read again."""
        self._digest = digest

    def _compute_digest(self) -> str:
        total = hashlib.blake2b(digest_size=16)
        for index in range(self.source_count):
            try:
                content = self._content(index)
            except UnreadableAnchorError:
                if self.config.on_error == "fail":
                    raise
                content = b""  # left out later
            total.update(bytes.fromhex(identity(content)))

        return total.hexdigest()

    def labels(self) -> np.ndarray:
        """Return all labels `(N,)` int64.

        Raises:
            InputError: the source has no labels.
        """
        labels = [self.source.label(index) for index in self.indices_N.tolist()]
        if None in labels:
            raise InputError(
                f"{self.config.path} split {self.config.split} has images without a label; expected one each"
            )

        return np.array(labels, dtype=np.int64)

    def _first_size(self) -> int:
        first = 0
        if self.config.on_error == "skip":
            while first < len(self) - 1 and self.why_unreadable(first):
                first += 1

        height, width = self._decode(self._content(first), first).shape[:2]
        if height != width:
            raise InputError(
                f"{self._where(first)}: {width}x{height} pixels, expected a square image; set anchors.size"
            )

        return height

    def _where(self, index: int) -> str:
        return f"anchor {self.config.split.replace('.', '_')}_{index:08d} of {self.config.path}"

    def _content(self, index: int) -> bytes | np.ndarray:
        try:
            content = self.source.content(index)
        except OSError as error:
            raise UnreadableAnchorError(
                f"{self._where(index)} cannot be read ({error}); restore or remove it"
            ) from error
        if len(content) == 0:
            raise UnreadableAnchorError(f"{self._where(index)} is empty; replace or remove it")
        return content

    def _decode(self, content: bytes | np.ndarray, index: int) -> np.ndarray:
        if isinstance(content, np.ndarray):
            return content

        try:
            with Image.open(io.BytesIO(content)) as image:
                upright = ImageOps.exif_transpose(image)
                if upright.mode.startswith("I;16"):
                    # Pillow's own conversion would clip 16 bits to 8.
                    upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
                elif upright.mode in ("I", "F"):
                    raise ValueError(f"mode {upright.mode}, expected 8 or 16 bits per channel")
                return np.asarray(upright.convert("RGB"))
        except Exception as error:  # Pillow raises many kinds on damaged bytes
            raise UnreadableAnchorError(
                f"{self._where(index)} does not decode as an image; replace or remove it ({error})"
            ) from error

    def _fit(self, image: np.ndarray, index: int) -> np.ndarray:
        height, width = image.shape[:2]
        if (height, width) == (self.size, self.size):
            return image
        if not self.config.size:
            raise InputError(
                f"{self._where(index)}: {width}x{height} pixels, the first anchor has {self.size}x{self.size}; "
                "set anchors.size"
            )

        pil = Image.fromarray(image)
        target = (self.size, self.size)
        resampling: Any = Image.Resampling.BICUBIC
        if self.config.resize == "squash":
            return np.asarray(pil.resize(target, resampling))

        return np.asarray(ImageOps.fit(pil, target, resampling))


def identity(content: bytes | np.ndarray) -> str:
    """Return the 128-bit BLAKE2b of the encoded bytes where the source has them, else of shape and pixels."""
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    return pixel_digest(content)
