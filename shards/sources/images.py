"""Open anchors, the images that positives are made for, from any source: folders, data sets, the embedded digits."""

import copy
import re
import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np

from ...core import InputError, Report
from .config import AnchorsConfig
from .decoding import (
    BitsNotMeasuredError,
    NeedsSettingError,
    Pixels,
    decode_rgb,
    fault_of,
    largest_value,
    parse_colour,
    read_header,
    resized,
)
from .errors import SourceError
from .names import some
from .opening import Source, open_source
from .survey import Depth, Findings, Look, Survey, identity, measure_bits


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


class ImageSource(Sequence[Anchor]):
    """Reads the anchors of a recipe in source order, decoded one at a time.

    Keys are `{split}_{index:08d}`. `digest` is over the identities of all anchors, so it names the source; it and
    `source_count` are those of the whole source also where anchors have been left out.

    Args:
        report: called with (files seen, 0) while a folder is walked, which may take long.

    Raises:
        InputError: the source is missing, has no such split or no image column; or, on access, an image does not
            decode or does not have the expected geometry.

    >>> anchors = ImageSource(AnchorsConfig(path="digits", split="test", limit=10))
    >>> len(anchors), anchors.size
    (10, 8)
    >>> [anchor.label for anchor in anchors[:3]]
    [4, 9, 4]
    """

    def __init__(self, config: AnchorsConfig, report: Report | None = None):
        self.config = config
        if not SPLIT.fullmatch(config.split):
            raise SourceError(
                "split", f"{config.split!r}; expected up to 64 printable ASCII letters, no slash"
            )

        self.source: Source = open_source(config, report)
        self.source_count = min(len(self.source), config.limit or len(self.source))
        if self.source_count == 0:
            raise SourceError(
                "path", f"{config.path} split {config.split} has no images, expected at least one"
            )

        self.indices_N = np.arange(self.source_count)
        self.class_names: tuple[str, ...] | None = self.source.class_names
        """The names of the classes by their numbers; None where they have no names."""
        self._numbers: dict[int, int] | None = None
        self.pixels = Pixels(_background(config.background), config.bits, config.range)
        self._measuring = threading.Lock()
        self._findings: Findings | None = None
        self._digest: str | None = None
        self.size: int = config.size or self._first_size()

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
        return Anchor(index, key, image, self._label(index), identity(content))

    def __iter__(self) -> Iterator[Anchor]:
        return (self[place] for place in range(len(self)))

    def key(self, place: int) -> str:
        """Return the anchor's name in shard sets and in the noise: no dots, unique."""
        return f"{self.config.split.replace('.', '_')}_{self.indices_N[place]:08d}"

    def image_digest(self, place: int) -> str:
        """Return the `digest` of an anchor, without decoding it."""
        return identity(self._content(int(self.indices_N[place])))

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

    def why_unfit(self) -> str | None:
        """Return the reason why images of floats, 32-bit integers or 16-bit colour need a setting; None if they do not.

        Only the first one of them is decoded.
        """
        first = self.findings.needs_setting
        if first is None:
            return None

        try:
            self._decode(self._content(first), first)
        except UnreadableAnchorError as error:
            return str(error)
        return None

    @property
    def digest(self) -> str:
        """Return the 128-bit BLAKE2b over the identities of all anchors, in order; computed when first asked for."""
        if self._digest is None:
            self._digest = (self.known_findings or self.look()).digest
        return self._digest

    def use_known_digest(self, digest: str) -> None:
        """Take a digest that was computed otherwise, so that the images are not read for it."""
        self._digest = digest

    @property
    def known_findings(self) -> Findings | None:
        """Return what an earlier look at all bytes found, None before the first."""
        return self._findings if self._findings and self._findings.digest else None

    @property
    def findings(self) -> Findings:
        """Return what the images are, by their headers; every image is read when this is first asked for."""
        return self._findings or self.look()

    def look(self, depth: Depth = "bytes", report: Report | None = None) -> Findings:
        """Look at every image of the source once, many at a time: for what the headers say, for the digest.

        Args:
            depth: `header` reads no more than that and leaves the digest empty; `pixels` decodes too, to find images
                that do not.
            report: called with (images looked at, images).

        Raises:
            UnreadableAnchorError: an image is gone or empty, and `anchors.on_error` is `fail`.
        """
        findings = Survey(self._look_at, self.source_count, depth).run(report)
        had_bits = self.pixels.bits
        self.use_known_findings(findings)

        # Which colour of 16 bits is of use depends on what was measured just now.
        is_new = self.pixels.bits not in (had_bits, 16)
        if depth == "pixels" and findings.deep_colour and is_new:
            return self.look(depth, report)

        return findings

    def use_known_findings(self, findings: Findings) -> None:
        """Take what was found earlier in this very source, so that its images are not read again."""
        self._findings = findings
        if findings.largest_16_bit is not None and not self.pixels.bits:
            self.pixels = self.pixels._replace(bits=findings.bits_in_use)

    def use_classes(self, names: Sequence[str]) -> None:
        """Number the classes as another source does, by their names; a class without a name is called as its number.

        Raises:
            InputError: an image's class is not among them.
        """
        places = {name: place for place, name in enumerate(names)}
        as_numbers = {int(name): place for name, place in places.items() if name.isdecimal()}

        # Only the classes that images have: a source may name more, those of its other splits too
        mine = self.source.class_names
        numbers = {}
        unknown = []
        for label in self._labels_in_use():
            name = mine[label] if mine else str(label)
            place = places.get(name)
            if place is None and name.isdecimal():
                place = as_numbers.get(int(name))
            if place is None:
                unknown.append(name)
            else:
                numbers[label] = place

        if unknown:
            classes = "class" if len(unknown) == 1 else "classes"
            which = "which is" if len(unknown) == 1 else "which are"
            raise InputError(
                f"{self.config.path} split {self.config.split} has the {classes} {some(map(repr, unknown))}, {which} "
                f"not among {some(names)}; expected the classes of the training images"
            )

        self._numbers = numbers
        self.class_names = tuple(names)

    def _labels_in_use(self) -> list[int]:
        """Return the classes of the images, as the source numbers them."""
        labels = {self.source.label(index) for index in self.indices_N.tolist()}
        return sorted(label for label in labels if label is not None and label >= 0)

    @property
    def names_in_use(self) -> tuple[str, ...] | None:
        """Return the names of the classes that images have, by their numbers; None where classes have no names."""
        mine = self.source.class_names
        return None if mine is None else tuple(mine[label] for label in self._labels_in_use())

    def use_pixels(
        self, background: str | None, bits: int | None, range: tuple[float, float] | None
    ) -> None:
        """Make pixels as an existing set has them: None is what sets without a word about it did."""
        self.pixels = Pixels(_background(background or "none"), bits or 16, range)

    @property
    def pixel_record(self) -> dict[str, Any]:
        """Return the settings that changed a pixel of these images, ready for JSON; empty for plain 8-bit images."""
        findings = self.findings
        record: dict[str, Any] = {}
        if findings.alpha and self.pixels.background:
            record["background"] = "#{:02x}{:02x}{:02x}".format(*self.pixels.background)
        if (findings.wide or findings.largest_16_bit is not None) and self.pixels.range:
            record["range"] = list(self.pixels.range)
        elif findings.largest_16_bit is not None and self.pixels.bits != 16:
            record["bits"] = self.pixels.bits

        return record

    def labels(self) -> np.ndarray:
        """Return all labels `(N,)` int64.

        Raises:
            InputError: the source has no labels.
        """
        labels = [self._label(index) for index in self.indices_N.tolist()]
        if None in labels:
            raise InputError(
                f"{self.config.path} split {self.config.split} has images without a label; expected one each"
            )

        return np.array(labels, dtype=np.int64)

    def _label(self, index: int) -> int | None:
        label = self.source.label(index)
        if label is None or label < 0 or self._numbers is None:
            return label
        return self._numbers[label]

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
        key = f"{self.config.split.replace('.', '_')}_{index:08d}"
        return f"anchor {key} of {self.config.path} ({self.source.describe(index)})"

    def _content(self, index: int) -> bytes | np.ndarray:
        try:
            content = self.source.content(index)
        except OSError as error:
            raise UnreadableAnchorError(
                f"{self._where(index)} cannot be read ({error.strerror or error}); restore or remove it"
            ) from error
        if len(content) == 0:
            raise UnreadableAnchorError(f"{self._where(index)} is empty; replace or remove it")
        return content

    def _decode(self, content: bytes | np.ndarray, index: int) -> np.ndarray:
        if isinstance(content, np.ndarray):
            return content

        try:
            return decode_rgb(content, self.pixels)
        except BitsNotMeasuredError:
            self._measure_bits()
            return self._decode(content, index)
        except Exception as error:  # Pillow raises many kinds on damaged bytes
            raise self._undecodable(index, error) from error

    def _measure_bits(self) -> None:
        """Find the bits in use of 16-bit images, over all of them."""
        with self._measuring:
            if not self.pixels.bits:
                bits = measure_bits(self.source.content, self.source_count)
                self.pixels = self.pixels._replace(bits=bits)

    def _look_at(self, index: int, depth: Depth) -> Look:
        """Tell what an image's header says, its identity, and why it is of no use."""
        path = self.source.path(index)
        if depth == "header" and path is not None:
            return self._look_at_header(index, path)

        try:
            content = self._content(index)
        except UnreadableAnchorError as error:
            if self.config.on_error == "fail":
                raise
            return Look(identity(b""), None, str(error))  # left out later

        if isinstance(content, np.ndarray):
            return Look(identity(content), None, None)

        try:
            header = read_header(content)
            if depth == "pixels":
                # Measured from what is read here; reading all images for it now would be twice the work.
                decode_rgb(content, self.pixels._replace(bits=self.pixels.bits or 16))
        except Exception as error:  # Pillow raises many kinds on damaged bytes
            return Look(identity(content), None, str(self._undecodable(index, error)))

        largest = largest_value(content) if header.bits == 16 else None
        return Look(identity(content), header, None, largest)

    def _look_at_header(self, index: int, path: Path) -> Look:
        try:
            header = read_header(path)
            largest = largest_value(path.read_bytes()) if header.bits == 16 else None
        except Exception as error:  # Pillow's, of many kinds, or the system's
            return Look(None, None, str(self._undecodable(index, error)))

        return Look(None, header, None, largest)

    def _undecodable(self, index: int, error: Exception) -> UnreadableAnchorError:
        if isinstance(error, NeedsSettingError):
            return UnreadableAnchorError(f"{self._where(index)}: {error}")

        return UnreadableAnchorError(
            f"{self._where(index)} does not decode as an image; replace or remove it ({fault_of(error)})"
        )

    def _fit(self, image: np.ndarray, index: int) -> np.ndarray:
        height, width = image.shape[:2]
        if (height, width) == (self.size, self.size):
            return image
        if not self.config.size:
            raise InputError(
                f"{self._where(index)}: {width}x{height} pixels, the first anchor has {self.size}x{self.size}; "
                "set anchors.size"
            )

        return resized(image, self.size, self.config.resize)


def _background(text: str) -> tuple[int, int, int] | None:
    return None if text == "none" else parse_colour(text)
