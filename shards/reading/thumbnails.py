"""Bring images to the size at which pictures of a set show them."""

import numpy as np
from PIL import Image

SMALLEST = 64
"""Images of fewer pixels are enlarged, by a whole factor, to this at most."""
LARGEST = 96
"""Images of more pixels are scaled down to this: a sheet of hundreds of them stays one that a page can hold."""


def thumbnail_side(size: int, largest: int = LARGEST) -> int:
    """Return the side at which an image of `size` pixels is shown.

    >>> thumbnail_side(8), thumbnail_side(32), thumbnail_side(96), thumbnail_side(256)
    (64, 64, 96, 96)
    """
    if size >= largest:
        return largest
    return size * max(1, SMALLEST // size)


def thumbnail(image_HWC: np.ndarray, largest: int = LARGEST) -> np.ndarray:
    """Return an image `(H, W, 3)` of equal sides at the size at which it is shown."""
    size = image_HWC.shape[0]
    side = thumbnail_side(size, largest)
    if side < size:
        reduced = Image.fromarray(image_HWC).resize((side, side), Image.Resampling.BICUBIC)
        return np.asarray(reduced)

    scale = side // size
    return image_HWC.repeat(scale, axis=0).repeat(scale, axis=1)
