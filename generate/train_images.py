"""The images of each training step of stage 1."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import default_collate

from ..core import permutation
from ..shards import ImageSource
from ..shards.reading.worker_batches import worker_batches
from .config import TrainingSettings
from .pixels import to_model_range


class TrainBatch(NamedTuple):
    """Holds the images `(B, 3, H, W)` in [-1, 1] of a step, and their classes `(B,)` int64 where there are any."""

    images_BCHW: torch.Tensor
    classes_B: torch.Tensor | None


def flip_half(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Mirror about half of the images, by torch's state of random numbers."""
    is_mirrored_B = torch.rand(len(images_BCHW), 1, 1, 1, device=images_BCHW.device) < 0.5
    return torch.where(is_mirrored_B, images_BCHW.flip(-1), images_BCHW)


class _ImageReader:
    """Reads the images of a batch."""

    def __init__(self, anchors: ImageSource, classes_N: np.ndarray | None):
        self.anchors = anchors
        self.classes_N = classes_N

    def __call__(self, places: Sequence[int]) -> TrainBatch:
        images = [to_model_range(self.anchors[place].image[None])[0] for place in places]
        classes_B = None
        if self.classes_N is not None:
            classes_B = torch.from_numpy(self.classes_N[list(places)])

        return TrainBatch(default_collate(images), classes_B)


class ImageOrder:
    """Gives the order of this rank's images in the steps `first` … `last - 1`: passes over shuffled images, end to end.

    It makes one batch at a time and keeps one pass in memory.
    """

    def __init__(
        self,
        count: int,
        config: TrainingSettings,
        first: int,
        last: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.count = count
        self.seed = config.seed
        self.batch_size = config.batch_size
        self.first = first
        self.last = last
        self.rank = rank
        self.world_size = world_size

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        order = np.empty(0, np.int64)
        order_epoch = -1
        local = self.batch_size // self.world_size

        for step in range(self.first, self.last):
            batch = []
            start = step * self.batch_size + self.rank * local
            for sample in range(start, start + local):
                epoch, place = divmod(sample, self.count)
                if epoch != order_epoch:
                    order = permutation(self.count, self.seed, epoch, "diffusion")
                    order_epoch = epoch
                batch.append(int(order[place]))
            yield batch


def image_batches(
    anchors: ImageSource,
    config: TrainingSettings,
    first: int,
    rank: int,
    world_size: int,
    classes_N: np.ndarray | None = None,
) -> AbstractContextManager[Iterator[TrainBatch]]:
    """Read this rank's images of the steps `first` … `config.steps - 1` inside a block.

    Args:
        classes_N: the anchors' classes, for a conditional model.
    """
    order = ImageOrder(len(anchors), config, first, config.steps, rank, world_size)
    return worker_batches(_ImageReader(anchors, classes_N), order, config.workers)
