"""Planted positives: other real images in the place of candidates, a known share of them of the anchor's class.

    python benchmarks/planted.py --recipe digits --share 1.0 --out planted-100.npy
    clsp shards import-npy planted-100.npy --recipe digits --out planted-100

With a share of 1 they are what perfect positives would be: an upper bound, which takes labels. A setting in which they
do not stand out from the third view cannot tell anything about positives; the curve over the share is what a real
set's label agreement is read against.
"""

import argparse
from pathlib import Path

import numpy as np
from clsp.cli.recipe import load_recipe
from clsp.shards import ImageSource


def plant(
    images_NHWC: np.ndarray, labels_N: np.ndarray, candidates: int, share: float, seed: int
) -> np.ndarray:
    """Return candidates `(N, K, H, W, 3)` uint8: images of the anchor's class, but never itself, or of another class.

    Args:
        share: the chance that a candidate is of the anchor's class, drawn for each.
    """
    generator = np.random.default_rng(seed)
    everyone = np.arange(len(labels_N))
    planted = np.empty((len(labels_N), candidates, *images_NHWC.shape[1:]), np.uint8)

    for anchor, label in enumerate(labels_N):
        same = everyone[(labels_N == label) & (everyone != anchor)]
        other = everyone[labels_N != label]
        for candidate in range(candidates):
            source = same if generator.random() < share else other
            planted[anchor, candidate] = images_NHWC[generator.choice(source)]

    return planted


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument(
        "--share", type=float, default=1.0, help="of the candidates that are of the anchor's class"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--out", type=Path, required=True, help="the array, for clsp shards import-npy"
    )
    options = parser.parse_args()

    recipe = load_recipe(options.recipe, options.overrides)
    anchors = ImageSource(recipe.anchors)
    images_NHWC = np.stack([anchor.image for anchor in anchors])
    planted = plant(
        images_NHWC, anchors.labels(), recipe.shards.candidates, options.share, options.seed
    )
    np.save(options.out, planted)
    print(f"{options.out}: {planted.shape[0]} anchors with {planted.shape[1]} candidates each")


if __name__ == "__main__":
    main()
