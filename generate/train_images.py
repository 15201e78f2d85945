"""The images of each training step of the diffusion model."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ..core import leave_stopping_to_the_main_process, permutation
from ..shards import ImageSource
from .config import DiffusionConfig
from .pixels import to_model_range


class _Images(Dataset[torch.Tensor]):
    def __init__(self, anchors: ImageSource):
        self.anchors = anchors

    def __len__(self) -> int:
        return len(self.anchors)

    def __getitem__(self, index: int) -> torch.Tensor:
        return to_model_range(self.anchors[index].image[None])[0]


class ImageOrder:
    """Gives the order of this rank's images in the steps `first` … `last - 1`: passes over shuffled images, end to end.

    A batch sampler that makes one batch at a time and keeps one pass in memory.
    """

    def __init__(
        self,
        count: int,
        config: DiffusionConfig,
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
    anchors: ImageSource, config: DiffusionConfig, first: int, rank: int, world_size: int
) -> Iterator[torch.Tensor]:
    """Yield this rank's images `(B, 3, H, W)` in [-1, 1] of the steps `first` … `config.steps - 1`."""
    order = ImageOrder(len(anchors), config, first, config.steps, rank, world_size)
    return iter(
        DataLoader(
            _Images(anchors),
            batch_sampler=order,
            num_workers=config.workers,
            worker_init_fn=leave_stopping_to_the_main_process,
        )
    )
