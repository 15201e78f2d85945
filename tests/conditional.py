"""Models that are trained on what an encoder says of their anchors, small enough for tests."""

import numpy as np
from clsp.generate import ClusterEncoder, DiffusionConfig
from clsp.shards import ImageSource


def pixels(images: ImageSource) -> np.ndarray:
    """Return the pixels of images as their features, `(N, 3·H·W)`."""
    return np.stack([image.image.reshape(-1) for image in images]).astype(np.float32)


PIXELS = ClusterEncoder("pixels", "11", pixels)
CLUSTERED = DiffusionConfig(
    channels=(32, 32),
    attention=(False, False),
    blocks=1,
    steps=4,
    batch_size=8,
    warmup_steps=2,
    checkpoint_steps=2,
    condition="clusters",
    clusters=3,
    cluster_encoder="pixels",
)
