"""Make a folder of crops of real photographs, to try models of larger images on without a data set at hand.

    python benchmarks/photographs.py --size 64 --count 2000 --out /tmp/photos

Cuts squares of random places and sizes out of the photographs that scikit-learn (a temple, a flower) and matplotlib (a
portrait) bring along, mirrors half of them and scales them down to SIZE. The same arguments give the same files. These
are crops of three photographs: enough to see that something works, and for no result that is worth comparing.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib import cbook
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images


def read_photographs() -> list[Image.Image]:
    """Return the photographs that the installed libraries bring along, in RGB."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    with Image.open(cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)) as portrait:
        photographs.append(portrait.convert("RGB"))
    return photographs


def cut(photograph: Image.Image, size: int, random: np.random.Generator) -> Image.Image:
    """Return a square of a random place and side, at least `size`, scaled to `size` and mirrored or not."""
    side = int(random.integers(size, min(photograph.size) + 1))
    left = int(random.integers(0, photograph.width - side + 1))
    top = int(random.integers(0, photograph.height - side + 1))
    square = photograph.crop((left, top, left + side, top + side))
    square = square.resize((size, size), Image.Resampling.LANCZOS)
    return ImageOps.mirror(square) if random.random() < 0.5 else square


def main() -> None:
    """Write the crops as PNG files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="side of a crop, in pixels")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()

    photographs = read_photographs()
    smallest = min(min(photograph.size) for photograph in photographs)
    if not 1 <= arguments.size <= smallest:
        parser.error(
            f"--size {arguments.size}: expected 1 to {smallest}, the smallest photograph's side"
        )

    random = np.random.default_rng(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for number in range(arguments.count):
        crop = cut(photographs[number % len(photographs)], arguments.size, random)
        crop.save(arguments.out / f"{number:06d}.png")

    print(f"{arguments.count} crops of {len(photographs)} photographs: {arguments.out}")


if __name__ == "__main__":
    main()
