"""Decode image files to 8-bit RGB, and tell from their headers what they are."""

import functools
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageColor, ImageOps, TiffImagePlugin

# A block that cannot be parsed is counted and told by the commands.
warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)

ALPHA_MODES = frozenset(("RGBA", "RGBa", "LA", "La", "PA"))
WIDE_MODES = frozenset(("I", "F"))
"""32-bit integers and floats, which need `anchors.range`."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings an image upright, by the value of the EXIF tag."""


class Pixels(NamedTuple):
    """Says how pixels that are not plain 8-bit RGB become so: the settings of `[anchors]`, `bits` measured or given."""

    background: tuple[int, int, int] | None
    """The colour behind transparent pixels; None keeps the colour that is hidden in them."""
    bits: int = 16
    """Bits in use of 16-bit images; 0: not known yet."""
    range: tuple[float, float] | None = None
    """Values that become 0 and 255, for floats and 32-bit integers."""


@dataclass(frozen=True)
class Header:
    """Holds what an image's header says."""

    format: str
    mode: str
    width: int
    height: int
    bits: int
    """Per channel."""
    channels: int
    has_alpha: bool
    is_animated: bool
    has_broken_exif: bool
    """An EXIF block that cannot be parsed."""


class BitsNotMeasuredError(Exception):
    """Says that an image has 16 bits per channel and nobody knows yet how many of them are in use."""


class NeedsSettingError(ValueError):
    """Says which key of `[anchors]` an image needs that is sound, but whose pixels are not plain 8 bits."""


def parse_colour(text: str) -> tuple[int, int, int]:
    """Return a colour by name or `#rrggbb` as red, green, blue.

    Raises:
        ValueError: no such colour.
    """
    red, green, blue = ImageColor.getrgb(text)[:3]
    return red, green, blue


@functools.cache
def opens_heif() -> bool:
    """Return True if HEIC can be read: by the optional pillow-heif, which is registered with Pillow here."""
    try:
        import pillow_heif  # type: ignore[import-not-found]
    except ImportError:
        return False

    pillow_heif.register_heif_opener()
    return True


def read_header(image: bytes | Path) -> Header:
    """Return what the header of an image says; of a file, only that is read.

    Raises:
        Exception: Pillow's, of many kinds: this is no image.
    """
    with _opened(image) as opened:
        return Header(
            format=opened.format or "",
            mode=opened.mode,
            width=opened.width,
            height=opened.height,
            bits=_bits(opened),
            channels=len(opened.getbands()),
            has_alpha=_has_alpha(opened),
            is_animated=getattr(opened, "is_animated", False),
            has_broken_exif=_has_broken_exif(opened),
        )


def is_image(content: bytes) -> bool:
    """Return True for bytes that begin like an image."""
    try:
        with _opened(content):
            return True
    except Exception:  # Pillow raises many kinds
        return False


def decode_rgb(content: bytes, pixels: Pixels) -> np.ndarray:
    """Decode an image, upright, to `(H, W, 3)` uint8 RGB.

    Raises:
        BitsNotMeasuredError: the image has 16 bits, and `pixels.bits` is not known.
        NeedsSettingError: floats, 32-bit integers or 16-bit colour that `pixels` does not say how to map.
        Exception: Pillow's, of many kinds.
    """
    with _opened(content) as image:
        bits = _bits(image)
        if bits == 16 and pixels.range is None and not pixels.bits:
            raise BitsNotMeasuredError
        if is_deep_colour(image.mode, bits):
            _check_deep_colour(pixels)

        # Pillow turns a TIFF when it loads it, and then knows of no orientation.
        image.load()
        orientation = _orientation(image)
        if orientation in TURNS:
            image = image.transpose(TURNS[orientation])

        if image.mode.startswith("I;16") or image.mode in WIDE_MODES:
            return _grey_to_rgb(_scaled(np.asarray(image), image.mode, pixels))

        if _has_alpha(image) and pixels.background is not None:
            visible = image.convert("RGBA")
            behind = Image.new("RGBA", visible.size, (*pixels.background, 255))
            image = Image.alpha_composite(behind, visible)

        return np.asarray(image.convert("RGB"))


def is_deep_colour(mode: str, bits: int) -> bool:
    """Return True for 16 bits per channel that Pillow reads as 8: of colour, and of grey with alpha."""
    return bits == 16 and not mode.startswith("I;16")


def largest_value(content: bytes) -> int | None:
    """Return the largest value of an image of 16 bits; None for any other image, and for one that does not decode.

    Pillow reads 16-bit colour by its upper 8 bits, so there the lower ones are taken for 1.
    """
    try:
        with _opened(content) as image:
            if _bits(image) != 16:
                return None
            is_whole = image.mode.startswith("I;16")
            values = np.asarray(image)
            if image.mode in ALPHA_MODES:
                values = values[..., :-1]
    except Exception:  # told when the image is decoded for use
        return None

    largest = int(values.max())
    return largest if is_whole or not largest else largest << 8 | 0xFF


def bits_in_use(largest: int) -> int:
    """Return the bits that hold a value, at least 8.

    >>> bits_in_use(4095), bits_in_use(4096), bits_in_use(3)
    (12, 13, 8)
    """
    return max(8, largest.bit_length())


def fault_of(error: Exception) -> str:
    """Return what a decoder's error says, in one line and without an object's address."""
    if isinstance(error, Image.UnidentifiedImageError):
        return "no image format that is known here"

    text = str(error) or type(error).__name__
    return text.splitlines()[0]


def resized(image: np.ndarray, size: int, how: str) -> np.ndarray:
    """Bring an image `(H, W, 3)` to `(size, size, 3)`: `crop` cuts the centre square, `squash` ignores the aspect."""
    pil = Image.fromarray(image)
    resampling: Any = Image.Resampling.BICUBIC
    if how == "squash":
        return np.asarray(pil.resize((size, size), resampling))

    return np.asarray(ImageOps.fit(pil, (size, size), resampling))


def _opened(image: bytes | Path) -> Image.Image:
    opens_heif()
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image)


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation; 1, upright, where none is told or the block is broken before it."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except (
        Exception
    ):  # Pillow raises many kinds on a damaged block, which is no reason to refuse the image
        return 1


def _has_broken_exif(image: Image.Image) -> bool:
    """Return True for an EXIF block, ahead of the pixels, that cannot be parsed."""
    if "exif" not in image.info:
        return False

    try:
        image.getexif().tobytes()  # parses every entry
    except Exception:
        return True

    return False


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in ALPHA_MODES or "transparency" in image.info


def _check_deep_colour(pixels: Pixels) -> None:
    """Refuse 16-bit colour that is not to be taken as it is: Pillow reads its upper 8 bits alone."""
    if pixels.range is not None:
        raise NeedsSettingError(
            "16-bit colour, of which only the upper 8 bits can be read; anchors.range is for grey: convert the images "
            "to 8 bits"
        )
    if pixels.bits != 16:
        raise NeedsSettingError(
            f"16-bit colour with {pixels.bits} bits in use, of which only the upper 8 of 16 can be read; convert the "
            "images to 8 bits, or set anchors.bits=16 to take them as they are"
        )


def _bits(image: Image.Image) -> int:
    """Return the bits per channel; Pillow hides them where it reads 16-bit colour as 8-bit."""
    if image.mode.startswith("I;16"):
        return 16
    if image.mode in WIDE_MODES:
        return 32
    if image.mode == "1":
        return 1
    if image.format == "PNG":
        tiles: Any = getattr(image, "tile", ())
        return 16 if tiles and ";16" in str(tiles[0].args) else 8
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        depths: Sequence[int] = image.tag_v2.get(TiffImagePlugin.BITSPERSAMPLE, (8,))
        return max(depths)

    return 8


def _scaled(grey_HW: np.ndarray, mode: str, pixels: Pixels) -> np.ndarray:
    """Bring grey of more than 8 bits to 0…255."""
    if pixels.range is not None:
        low, high = pixels.range
        share = (grey_HW.astype(np.float64) - low) / (high - low)
        return np.rint(share.clip(0, 1) * 255).astype(np.uint8)

    if mode in WIDE_MODES:
        lowest = grey_HW.min()
        highest = grey_HW.max()
        kind = "floats" if mode == "F" else "32-bit integers"
        raise NeedsSettingError(
            f"{kind} from {lowest:g} to {highest:g}; set anchors.range to the two values that become black and white"
        )

    return (grey_HW >> (pixels.bits - 8)).clip(0, 255).astype(np.uint8)


def _grey_to_rgb(grey_HW: np.ndarray) -> np.ndarray:
    return np.repeat(grey_HW[..., None], 3, axis=2)
