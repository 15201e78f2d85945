"""The images of a shard set on their way to an encoder, and its anchors' classes."""

from collections.abc import Iterator

import numpy as np
import torch

from ...core import InputError
from ...shards import ShardSet
from .encoder import Encoder
from .extract import ahead


def image_features(encoder: Encoder, batches: Iterator[np.ndarray]) -> torch.Tensor:
    """Features `(N, F)` of batches of images `(B, H, W, 3)` uint8; the next is made while the encoder works."""
    return torch.cat([encoder(batch) for batch in ahead(batches)])


def anchor_images(shards: ShardSet, batch: int) -> Iterator[np.ndarray]:
    """The anchors of a set, batch by batch."""
    for start in range(0, len(shards), batch):
        yield np.stack(
            [shards.anchor(position) for position in range(start, min(start + batch, len(shards)))]
        )


def candidate_images(shards: ShardSet, anchors: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first anchor, its and the next ones' candidates, `(anchors · K, H, W, C)`)."""
    for start in range(0, len(shards), anchors):
        rows = range(start, min(start + anchors, len(shards)))
        yield (
            start,
            np.stack([shards.candidate(row, k) for row in rows for k in range(shards.candidates)]),
        )


def class_numbers(shards: ShardSet) -> torch.Tensor | None:
    """The anchors' classes, 0 … n-1 in the order of their labels; None where some have none, or all the same one."""
    try:
        labels = shards.labels()
    except InputError:
        return None
    classes, numbers = np.unique(labels, return_inverse=True)
    return torch.from_numpy(numbers) if len(classes) > 1 and classes[0] >= 0 else None
