"""Measure how fast a folder of images is walked and looked at, against the plainest loops that read as much.

    make bench BENCH=images ARGS="--count 1000000 --folder /tmp/many"

Makes COUNT small PNG files in folders of 1 000 once, and leaves them there where --folder names a place. Each step is
timed beside its plain loop in the same round, so the ratio holds on a noisy machine; the plain loops run in one thread.
"""

import argparse
import io
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
from clsp.shards import AnchorsConfig, ImageSource
from clsp.shards.sources.walk import find_files
from PIL import Image

IMAGES_PER_FOLDER = 1000
SIDE = 32


def make_folder(root: Path, count: int) -> None:
    """Write `count` PNG files of noise, but for those that are there."""
    random = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"class{number // IMAGES_PER_FOLDER:05d}"
        path = folder / f"{number:08d}.png"
        if path.exists():
            continue

        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def walk_plainly(root: Path) -> int:
    """List and stat every file, as any walk has to."""
    found = 0
    for folder, _, names in os.walk(root):
        for name in names:
            os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118
            found += 1
    return found


def read_headers_plainly(root: Path) -> int:
    """Open every file with Pillow, which reads its header."""
    found = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with Image.open(os.path.join(folder, name)) as image:  # noqa: PTH118
                found += image.width > 0
    return found


def read_bytes_plainly(root: Path) -> int:
    """Read every file, and its header from the bytes."""
    found = 0
    for folder, _, names in os.walk(root):
        for name in names:
            content = Path(folder, name).read_bytes()
            with Image.open(io.BytesIO(content)) as image:
                found += image.width > 0
    return found


def seconds(work: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        make_folder(root, options.count)
        opened = ImageSource(AnchorsConfig(path=str(root), size=SIDE))
        steps: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
            "walk": (lambda: find_files(root), lambda: walk_plainly(root)),
            "headers": (lambda: opened.look("header"), lambda: read_headers_plainly(root)),
            "bytes and headers": (lambda: opened.look("bytes"), lambda: read_bytes_plainly(root)),
        }

        print(f"{options.count} images, {os.cpu_count()} cores, median of {options.rounds} rounds")
        for name, (ours, plain) in steps.items():
            mine = []
            ratios = []
            for _ in range(options.rounds):
                took = seconds(ours)
                mine.append(took)
                ratios.append(seconds(plain) / took)

            rate = options.count / median(mine)
            print(f"{name:18} {rate:9.0f} images/s, {median(ratios):.2f} of the plain loop's rate")


if __name__ == "__main__":
    main()
