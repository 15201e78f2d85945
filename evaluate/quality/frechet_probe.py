"""Measure a model in training, for its log."""

import math
from collections.abc import Callable, Iterator

import numpy as np

from ...shards import ImageSource
from ..features.encoder import Encoder
from ..features.shard_features import image_features
from .distances import Moments, frechet_distance


def frechet_probe(
    encoder: Encoder, anchors: ImageSource, limit: int
) -> Callable[[Iterator[np.ndarray]], dict[str, float]]:
    """Return a function that measures images `(B, H, W, 3)` uint8 by their distance to up to `limit` anchors.

    It is the Fréchet distance in the features of the encoder.
    """
    chosen = anchors.spread(limit)

    def moments(batches: Iterator[np.ndarray]) -> Moments:
        features = image_features(encoder, batches)
        found = Moments(features.shape[1])
        found.add(features)
        return found

    def anchor_batches() -> Iterator[np.ndarray]:
        count = math.ceil(len(chosen) / encoder.batch)
        for part in np.array_split(chosen, count):
            yield np.stack([anchors[int(place)].image for place in part])

    real = moments(anchor_batches())

    def measure(batches: Iterator[np.ndarray]) -> dict[str, float]:
        return {"frechet": frechet_distance(real, moments(batches))}

    return measure
