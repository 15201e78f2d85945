"""Turn images into bytes and back: without loss, or with a little for images of many pixels."""

import functools
import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, features

from ...core import InputError, WorkError

LONGEST_HEADER = 1 << 12
"""Bytes within which a JPEG has to state its size; what Pillow writes has it within 200."""
JPEG_START = b"\xff\xd8"
JPEG_BASELINE = 0xC0
JPEG_SKIPPED = frozenset((*range(0xE0, 0xF0), 0xDB, 0xC4, 0xDD, 0xFE))
"""Markers that may stand ahead of the size: application data, tables, restart interval, comment."""


PILLOW_FEATURES = {"WEBP": "webp", "PNG": "zlib", "JPEG": "jpg"}
"""What Pillow calls the libraries that it may have been built without."""


@dataclass(frozen=True)
class Codec:
    """Says how the images of a set are coded.

    >>> CODECS["jpeg-95"].ending, CODECS["jpeg-95"].is_lossless
    ('jpg', False)
    """

    name: str
    """In recipes and plans."""
    format: str
    """As Pillow calls it."""
    ending: str
    """Of the members in a tar, by which `webdataset` and `datasets` choose a decoder."""
    is_lossless: bool
    settings: Mapping[str, Any]
    """Of Pillow's encoder."""

    @property
    def text(self) -> str:
        """Return the codec as a text for people."""
        return f"{self.name}, {'lossless' if self.is_lossless else 'lossy'}"


# method=0, quality=0 is WebP's fastest lossless setting: ten times the default's speed for 7 % more bytes. JPEG keeps
# its colours at full resolution (4:4:4): how decoders enlarge halved ones differs between libraries and versions.
_ALL = (
    Codec(
        "webp", "WEBP", "webp", True, {"lossless": True, "quality": 0, "method": 0, "exact": True}
    ),
    Codec("png", "PNG", "png", True, {"compress_level": 1}),
    Codec("webp-90", "WEBP", "webp", False, {"quality": 90, "method": 2}),
    Codec("jpeg-95", "JPEG", "jpg", False, {"quality": 95, "subsampling": 0}),
)
CODECS = {codec.name: codec for codec in _ALL}
"""The codecs by their names."""


def find_codec(name: str) -> Codec:
    """Return the codec of that name.

    Raises:
        InputError: this version knows none, or Pillow was built without it here.
    """
    if name not in CODECS:
        raise InputError(
            f"its images are coded as {name}, and this clsp knows {', '.join(CODECS)}; install a newer clsp"
        )

    codec = CODECS[name]
    if not features.check(PILLOW_FEATURES[codec.format]):
        raise InputError(
            f"its images are coded as {name}, and Pillow was built without {codec.format} here; install it anew: "
            "pip install --force-reinstall pillow"
        )
    return codec


def encode(image_HWC: np.ndarray, codec: str) -> bytes:
    """Encode an `(H, W, 3)` uint8 RGB image; equal images give equal bytes with the same version of Pillow."""
    buffer = io.BytesIO()
    chosen = CODECS[codec]
    Image.fromarray(image_HWC, "RGB").save(buffer, chosen.format, **chosen.settings)
    return buffer.getvalue()


def decode(content: bytes, codec: str, size: int) -> np.ndarray:
    """Decode the `(size, size, 3)` uint8 RGB image in `content`.

    Raises:
        WorkError: the bytes are not an image of that codec and size; larger ones are refused before decoding.
    """
    # Pillow allocates a WebP's canvas as soon as it opens it.
    check_header(content[:LONGEST_HEADER], codec, size)

    try:
        with Image.open(io.BytesIO(content), formats=(CODECS[codec].format,)) as image:
            if image.size != (size, size):
                raise WorkError(f"image of {image.size[0]}x{image.size[1]}, expected {size}x{size}")
            if image.mode != "RGB":
                raise WorkError(f"image of mode {image.mode}, expected RGB")
            return np.asarray(image)
    except WorkError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged bytes
        raise WorkError(f"does not decode as {codec}: {error}") from error


def check_header(head: bytes | bytearray, codec: str, size: int) -> None:
    """Check the size that an image's first bytes state, before a decoder allocates memory for it.

    Args:
        head: the first `LONGEST_HEADER` bytes or more; of WebP and PNG 32 are enough.

    Raises:
        WorkError: another codec (for WebP: another kind than the codec's, with or without loss), not plain RGB, or
            another size than `size` x `size`.
    """
    if codec == "webp" and head[:4] + head[8:16] + head[20:25] == _webp_head(size):
        return  # the usual case at a quarter of the time
    if len(head) < 30:
        raise WorkError(f"does not decode as {codec}: {len(head)} bytes")

    found = _STATED[codec](head)
    if found is None:
        kind = "lossless" if CODECS[codec].is_lossless else "lossy"
        raise WorkError(f"does not decode as {codec}: it does not begin as a {kind} RGB image")
    if found != (size, size):
        raise WorkError(f"image of {found[0]}x{found[1]}, expected {size}x{size} RGB")


@functools.cache
def _webp_head(size: int) -> bytes:
    """Return the bytes that a lossless RGB WebP of `size` x `size` begins with, less its two lengths."""
    width_and_height = size - 1 | size - 1 << 14
    return b"RIFFWEBPVP8L\x2f" + width_and_height.to_bytes(4, "little")


# Width and height that headers state, None for what is no plain RGB image of the kind


def _png_size(head: bytes | bytearray) -> tuple[int, int] | None:
    is_png = head[:8] == b"\x89PNG\r\n\x1a\n" and head[12:16] == b"IHDR"
    is_rgb = (head[24], head[25]) == (8, 2)  # 8 bits, RGB
    if not is_png or not is_rgb:
        return None
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _lossless_webp_size(head: bytes | bytearray) -> tuple[int, int] | None:
    is_webp = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8L" and head[20] == 0x2F
    bits = int.from_bytes(head[21:25], "little")
    is_rgb = not bits >> 29 & 7 and not bits >> 28 & 1  # the version, 0, and no alpha
    if not is_webp or not is_rgb:
        return None
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1


def _lossy_webp_size(head: bytes | bytearray) -> tuple[int, int] | None:
    # RFC 6386, section 9.1. Files with alpha or animation begin with VP8X.
    is_webp = head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8 " and head[23:26] == b"\x9d\x01\x2a"
    is_key_frame = not head[20] & 1
    width, height = struct.unpack("<HH", head[26:30])  # the upper two bits: a scale, 0
    return (width, height) if is_webp and is_key_frame else None


def _jpeg_size(head: bytes | bytearray) -> tuple[int, int] | None:
    # ITU T.81, B.1 and B.2: segments up to the frame header. Progressive files, which take a decoder more memory
    # and time than their size says, are none of the codec's.
    if head[:2] != JPEG_START:
        return None

    start = 2
    while start + 19 <= len(head) and head[start] == 0xFF:
        marker = head[start + 1]
        length = int.from_bytes(head[start + 2 : start + 4], "big")

        if marker == JPEG_BASELINE:
            bits, height, width, channels = struct.unpack(">BHHB", head[start + 4 : start + 10])
            return (width, height) if (bits, channels) == (8, 3) else None
        if marker not in JPEG_SKIPPED or length < 2:
            return None

        start += 2 + length

    return None


_STATED = {
    "webp": _lossless_webp_size,
    "png": _png_size,
    "webp-90": _lossy_webp_size,
    "jpeg-95": _jpeg_size,
}
