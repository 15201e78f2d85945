"""Small pictures of the kinds that people have, for the tests of image sources."""

import io
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from clsp.shards import AnchorsConfig, ImageSource
from PIL import Image
from sklearn.datasets import load_sample_image

RED = (255, 0, 0)
GREEN = (0, 255, 0)
BLUE = (0, 0, 255)
SIDE = 8


def picture(colour: tuple[int, int, int] = RED, number: int = 0) -> Image.Image:
    """A square of one colour, but for a pixel by which no two of them are equal."""
    pixels = np.full((SIDE, SIDE, 3), colour, np.uint8)
    pixels[0, 0] = np.random.default_rng(number).integers(0, 256, 3)
    return Image.fromarray(pixels)


def photograph(number: int = 0, size: int = 32) -> np.ndarray:
    """A part of a photograph that scikit-learn ships, `(size, size, 3)`: another one for every number below 100."""
    whole = load_sample_image("china.jpg")
    top = 17 + 13 * (number % 10)
    left = 23 + 29 * (number // 10)
    return np.ascontiguousarray(whole[top : top + size, left : left + size])


def put(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    """Save a picture, and make the folders for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


def many(folder: Path, count: int, colour: tuple[int, int, int] = RED) -> Path:
    """Fill a folder with `00.png`, `01.png`, …"""
    for number in range(count):
        put(folder / f"{number:02d}.png", picture(colour, number))
    return folder


def encoded(image: Image.Image | np.ndarray, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    pil = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    pil.save(buffer, image_format, **options)
    return buffer.getvalue()


def colours(count: int) -> list[bytes]:
    """Encoded pictures of as many different reds."""
    return [encoded(picture((20 * number, 0, 0))) for number in range(count)]


def parquet(path: Path, contents: Sequence[bytes], **columns: Sequence[Any]) -> Path:
    """Write a parquet file with the column `image` and others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": content, "path": None} for content in contents]
    datasets.Dataset.from_dict({"image": cells, **columns}).to_parquet(path)
    return path


def webdataset_tar(path: Path, records: Sequence[Mapping[str, bytes]]) -> Path:
    """Write a tar with the members `000000.png`, `000000.cls`, … of every record."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, record in enumerate(records):
            for suffix, content in record.items():
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def deep_png(values: np.ndarray) -> bytes:
    """Encode `(H, W, channels)` uint16 by hand as PNG: 1 grey, 2 grey and alpha, 3 colour, 4 colour and alpha."""
    height, width, channels = values.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))

    png = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        png += struct.pack(">I", len(content)) + name + content
        png += struct.pack(">I", zlib.crc32(name + content))
    return png


def opened(path: Path | str, **settings: Any) -> ImageSource:
    return ImageSource(AnchorsConfig(path=str(path), **settings))


def middle(images: ImageSource, index: int = 0) -> tuple[int, ...]:
    """The colour of an image away from its special pixel."""
    return tuple(images[index].image[SIDE // 2, SIDE // 2].tolist())


def class_of(images: ImageSource) -> dict[str, str | None]:
    """The name of every image's class, by the file's path."""
    names = images.class_names
    assert names is not None
    found = {}
    for anchor in images:
        label = None if anchor.label is None else names[anchor.label]
        found[images.source.describe(anchor.index)] = label
    return found
