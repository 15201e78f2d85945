"""Compute the digests of files and of an image's pixels."""

import hashlib
from pathlib import Path

import numpy as np


def sha256_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pixel_digest(image_HWC: np.ndarray) -> str:
    """Return the 128-bit BLAKE2b of an image's shape and RGB bytes, as 32 hexadecimal characters."""
    shape = "x".join(map(str, image_HWC.shape))
    digest = hashlib.blake2b(f"{shape}:".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image_HWC).data)
    return digest.hexdigest()
