"""Read the images of a shard set for an encoder, and its anchors' classes."""

from collections.abc import Iterator

import numpy as np
import torch

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


NO_CLASS = -1
"""In the place of the class of an anchor without a label."""


def class_numbers(shards: ShardSet) -> torch.Tensor | None:
    """Return the anchors' classes, 0 … n-1 in the order of their labels, and `NO_CLASS` where an anchor has no label.

    None where no two anchors have different labels.
    """
    column = shards.layers[0].index.column("label")
    labels_N = column.fill_null(NO_CLASS).to_numpy()

    # Sources tell by a negative number, too, that there is no label
    known_N = labels_N >= 0
    classes, numbers = np.unique(labels_N[known_N], return_inverse=True)
    if len(classes) < 2:
        return None

    classes_N = np.full(len(labels_N), NO_CLASS, np.int64)
    classes_N[known_N] = numbers
    return torch.from_numpy(classes_N)
