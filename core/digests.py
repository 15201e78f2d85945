"""Compute the digests of files and of an image's pixels."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pixel_digest(image_HWC: np.ndarray) -> str:
    """Return the 128-bit BLAKE2b of an image's shape and RGB bytes, as 32 hexadecimal characters."""
    digest = shape_digest(image_HWC.shape)
    digest.update(np.ascontiguousarray(image_HWC).data)
    return digest.hexdigest()


def shape_digest(shape: Sequence[int]) -> "hashlib.blake2b":
    """Return the digest that `pixel_digest` begins with, of the shape alone: for many images of one shape."""
    text = "x".join(map(str, shape))
    return hashlib.blake2b(f"{text}:".encode(), digest_size=16)
