"""Read the images of a shard set for an encoder, and its anchors' classes."""

from collections.abc import Iterator

import numpy as np
import torch

from ...core import InputError
from ...shards import Anchor, ShardSet
from .encoder import Encoder
from .extract import ahead


def image_features(encoder: Encoder, batches: Iterator[np.ndarray]) -> torch.Tensor:
    """Extract features `(N, F)` of batches of images `(B, H, W, 3)` uint8; the next is made while the encoder works."""
    return torch.cat([encoder(batch) for batch in ahead(batches)])


def anchor_images(shards: ShardSet, batch: int) -> Iterator[np.ndarray]:
    """Yield the anchors of a set, batch by batch."""
    for start in range(0, len(shards), batch):
        positions = range(start, min(start + batch, len(shards)))
        yield np.stack([shards.anchor(position) for position in positions])


def anchor_records(shards: ShardSet, batch: int) -> Iterator[list[Anchor]]:
    """Yield the anchors of a set with their keys and labels, batch by batch."""
    for start in range(0, len(shards), batch):
        positions = range(start, min(start + batch, len(shards)))
        yield [shards.anchor_record(position) for position in positions]


def candidate_images(shards: ShardSet, anchors: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first anchor, its and the next ones' candidates, `(anchors · K, H, W, C)`)."""
    for start in range(0, len(shards), anchors):
        images = []
        for row in range(start, min(start + anchors, len(shards))):
            for number in range(shards.candidates):
                images.append(shards.candidate(row, number))

        yield start, np.stack(images)


def class_numbers(shards: ShardSet) -> torch.Tensor | None:
    """Return the anchors' classes, 0 … n-1 in the order of their labels; None where some have none or all the same."""
    try:
        labels = shards.labels()
    except InputError:
        return None

    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2 or classes[0] < 0:
        return None
    return torch.from_numpy(numbers)
