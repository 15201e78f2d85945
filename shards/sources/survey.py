"""Look at every image of a source once: what its header says, its identity, and whether it decodes."""

import hashlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...core import Report, pixel_digest
from .decoding import Header, bits_in_use, is_deep_colour, largest_value

Depth = Literal["header", "bytes", "pixels"]
"""How much of an image is looked at: its header, all of its bytes, or these decoded."""

CHUNK = 64
"""Images that a thread looks at in one go."""

THREADS = 16
"""More than cores: on a network's disk a thread mostly waits."""

MOST_SIZES = 1000
"""Different sizes that are counted one by one."""


@dataclass(frozen=True)
class Look:
    """Holds what a look at one image told."""

    identity: str | None
    """None where the header alone was read."""
    header: Header | None
    """None for pixels that are no file, and for what is no image."""
    fault: str | None
    """Why the image is of no use, naming it; None for a good one."""
    largest_16_bit: int | None = None
    """The largest value, of an image of 16 bits."""


class Findings(BaseModel):
    """Holds what the images of a source are: counts by their headers, and the digest of all of them.

    >>> from clsp.shards import AnchorsConfig, ImageSource
    >>> findings = ImageSource(AnchorsConfig(path="digits", limit=10)).findings
    >>> findings.count, findings.formats
    (10, {'pixels': 10})
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    """Empty where the headers alone were read."""
    count: int
    depth: Depth
    """How much of every image was looked at; one that was not decoded may still turn out to be damaged."""
    formats: dict[str, int]
    modes: dict[str, int]
    bits: dict[int, int]
    sizes: dict[str, int]
    """`WIDTHxHEIGHT`, the most frequent ones first."""
    smallest_side: int
    largest_side: int
    alpha: int
    """Images with transparency."""
    wide: int
    """Images of floats or 32-bit integers."""
    deep_colour: int
    """Images of 16-bit colour."""
    needs_setting: int | None
    """The first image of those two kinds."""
    animated: int
    largest_16_bit: int | None
    """The largest value of all 16-bit images; None without such images."""
    broken_exif: list[int]
    unreadable: dict[int, str]

    @property
    def bits_in_use(self) -> int:
        """Return the bits that hold the largest value of all 16-bit images."""
        return 16 if self.largest_16_bit is None else bits_in_use(self.largest_16_bit)


class Survey:
    """Looks at images by threads, since reading and decoding release Python's lock, and adds up what they tell."""

    def __init__(self, look: Callable[[int, Depth], Look], count: int, depth: Depth):
        self._look = look
        self._count = count
        self._depth: Depth = depth
        self._digest = hashlib.blake2b(digest_size=16)
        self._formats: Counter[str] = Counter()
        self._modes: Counter[str] = Counter()
        self._bits: Counter[int] = Counter()
        self._sizes: Counter[str] = Counter()
        self._smallest_side = 0
        self._largest_side = 0
        self._alpha = 0
        self._wide = 0
        self._deep_colour = 0
        self._needs_setting: int | None = None
        self._animated = 0
        self._largest: int | None = None
        self._broken_exif: list[int] = []
        self._unreadable: dict[int, str] = {}

    def run(self, report: Report | None = None) -> Findings:
        """Look at all images, in order, and return what was found."""
        starts = range(0, self._count, CHUNK)
        with ThreadPoolExecutor(THREADS) as threads:
            for start, looks in zip(starts, threads.map(self._look_at_chunk, starts), strict=True):
                for index, look in enumerate(looks, start):
                    self._add(index, look)

                if report:
                    report(start + len(looks), self._count)

        return Findings(
            digest="" if self._depth == "header" else self._digest.hexdigest(),
            count=self._count,
            depth=self._depth,
            formats=_by_count(self._formats),
            modes=_by_count(self._modes),
            bits=dict(self._bits.most_common()),
            sizes=_by_count(self._sizes),
            smallest_side=self._smallest_side,
            largest_side=self._largest_side,
            alpha=self._alpha,
            wide=self._wide,
            deep_colour=self._deep_colour,
            needs_setting=self._needs_setting,
            animated=self._animated,
            largest_16_bit=self._largest,
            broken_exif=self._broken_exif,
            unreadable=self._unreadable,
        )

    def _look_at_chunk(self, start: int) -> list[Look]:
        stop = min(start + CHUNK, self._count)
        return [self._look(index, self._depth) for index in range(start, stop)]

    def _add(self, index: int, look: Look) -> None:
        if look.identity is not None:
            self._digest.update(bytes.fromhex(look.identity))
        if look.fault:
            self._unreadable[index] = look.fault
            return
        if look.header is None:
            self._formats["pixels"] += 1
            return

        header = look.header
        self._formats[header.format] += 1
        self._modes[header.mode] += 1
        self._bits[header.bits] += 1
        self._alpha += header.has_alpha
        self._add_depth(index, header)
        self._animated += header.is_animated
        sides = (header.width, header.height)
        self._smallest_side = min(self._smallest_side or min(sides), *sides)
        self._largest_side = max(self._largest_side, *sides)

        size = f"{header.width}x{header.height}"
        if size in self._sizes or len(self._sizes) < MOST_SIZES:
            self._sizes[size] += 1
        if header.has_broken_exif:
            self._broken_exif.append(index)
        if look.largest_16_bit is not None:
            self._largest = max(self._largest or 0, look.largest_16_bit)

    def _add_depth(self, index: int, header: Header) -> None:
        """Count images whose pixels may need a setting, and remember the first."""
        is_wide = header.bits == 32
        is_deep = is_deep_colour(header.mode, header.bits)
        self._wide += is_wide
        self._deep_colour += is_deep
        if (is_wide or is_deep) and self._needs_setting is None:
            self._needs_setting = index


def measure_bits(content: Callable[[int], bytes | np.ndarray], count: int) -> int:
    """Return the bits in use of all 16-bit images of a source."""

    def largest_of(index: int) -> int:
        try:
            encoded = content(index)
        except OSError:  # told when the image is used
            return 0
        return (largest_value(encoded) or 0) if isinstance(encoded, bytes) else 0

    with ThreadPoolExecutor(THREADS) as threads:
        return bits_in_use(max(threads.map(largest_of, range(count)), default=0))


def identity(content: bytes | np.ndarray) -> str:
    """Return the 128-bit BLAKE2b of the encoded bytes where the source has them, else of shape and pixels."""
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    return pixel_digest(content)


def _by_count(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common())
