"""Measures of a model in training, for its log."""

from collections.abc import Callable, Iterator

import numpy as np

from ...shards import ImageSource
from ..features.encoder import Encoder
from ..features.shard_features import image_features
from .distances import Moments, frechet_distance


def frechet_probe(
    encoder: Encoder, anchors: ImageSource, limit: int
) -> Callable[[Iterator[np.ndarray]], dict[str, float]]:
    """Measures batches of images `(B, H, W, 3)` uint8 by their Fréchet distance to up to `limit` anchors."""
    chosen = anchors.spread(limit)

    def moments(batches: Iterator[np.ndarray]) -> Moments:
        features = image_features(encoder, batches)
        found = Moments(features.shape[1])
        found.add(features)
        return found

    parts = np.array_split(chosen, -(-len(chosen) // encoder.batch))
    real = moments(np.stack([anchors[int(place)].image for place in part]) for part in parts)

    return lambda batches: {"frechet": frechet_distance(real, moments(batches))}
