"""Neighbours in the place of positives: the other real images that an encoder finds most alike, without labels.

    python benchmarks/neighbours.py --recipe cifar10:day --encoder runs/day/features --out neighbours.npy
    clsp shards import-npy neighbours.npy --recipe cifar10:day --out neighbours

With `--among 50` they are drawn from the 50 nearest: farther away, and different ones. With `--clusters 100` they are
random other images of the anchor's pseudo-class, of so many: farther still, for the anchor may lie at its edge.

The control of a diffusion model that was told this encoder's features: what is gained by new images that they could
not give by themselves. The neighbours come from all images of the source, however few of them are anchors
(`anchors.limit`); so did what the diffusion model was trained on.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from clsp.cli.recipe import load_recipe
from clsp.evaluate import embed_images, load_encoder
from clsp.generate.clusters import cluster_features, unit_features
from clsp.shards import ImageSource

BLOCK = 1000
"""Anchors whose cosines are looked at together."""


def nearest(unit_MF: np.ndarray, anchors: int, count: int) -> np.ndarray:
    """Return the places `(N, count)` of the most similar other images of the first N, the nearest first.

    Args:
        unit_MF: features of length 1 of all images, the anchors first.
    """
    found = []
    for start in range(0, anchors, BLOCK):
        stop = min(start + BLOCK, anchors)
        cosines_BM = torch.from_numpy(unit_MF[start:stop] @ unit_MF.T)
        cosines_BM.diagonal(start).fill_(-torch.inf)  # never itself
        found.append(cosines_BM.topk(count).indices)

    return torch.cat(found).numpy()


def draw_some(places_NA: np.ndarray, count: int) -> np.ndarray:
    """Return `(N, count)` different places of every row, at random."""
    generator = np.random.default_rng(0)
    return generator.permuted(places_NA, axis=1)[:, :count]


def mates(clusters_M: np.ndarray, anchors: int, count: int) -> np.ndarray:
    """Return the places `(N, count)` of random other images of the pseudo-class of each of the first N."""
    generator = np.random.default_rng(0)
    members = [np.flatnonzero(clusters_M == cluster) for cluster in range(clusters_M.max() + 1)]
    found_NK = np.empty((anchors, count), np.int64)
    for anchor in range(anchors):
        others = members[clusters_M[anchor]]
        found_NK[anchor] = generator.choice(others[others != anchor], count)

    return found_NK


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="cifar10:day")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--encoder", required=True, help="a run, or what else is an encoder")
    drawn = parser.add_mutually_exclusive_group()
    drawn.add_argument("--among", type=int, default=0, help="draw them from so many nearest ones")
    drawn.add_argument("--clusters", type=int, default=0, help="take random mates of so many")
    parser.add_argument(
        "--out", type=Path, required=True, help="the array, for clsp shards import-npy"
    )
    options = parser.parse_args()

    # All images, and how many of them are anchors
    recipe = load_recipe(options.recipe, options.overrides)
    images = ImageSource(recipe.anchors.model_copy(update={"limit": 0}))
    anchors = recipe.anchors.limit or len(images)
    candidates = recipe.shards.candidates
    if 0 < options.among < candidates:
        parser.error(
            f"--among is {options.among}, expected {candidates} (shards.candidates) or more"
        )

    features_MF = embed_images(load_encoder(options.encoder), images).numpy()
    if options.clusters:
        clusters_M = cluster_features(features_MF, options.clusters, seed=0)
        places_NK = mates(clusters_M, anchors, candidates)
    elif options.among:
        places_NA = nearest(unit_features(features_MF), anchors, options.among)
        places_NK = draw_some(places_NA, candidates)
    else:
        places_NK = nearest(unit_features(features_MF), anchors, candidates)

    # What they are worth
    labels_M = images.labels()
    agreement = float((labels_M[places_NK] == labels_M[:anchors, None]).mean())
    print(f"{agreement:.1%} of them are of their anchor's class")

    pixels_MHWC = np.stack([image.image for image in images])
    np.save(options.out, pixels_MHWC[places_NK])
    print(f"{options.out}: {anchors} anchors with {places_NK.shape[1]} candidates each")


if __name__ == "__main__":
    main()
