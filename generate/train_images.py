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
from .encoded_anchors import EncodedAnchors
from .pixels import to_model_range


class TrainBatch(NamedTuple):
    """Holds the images `(B, 3, H, W)` in [-1, 1] or the latents `(B, C, h, w)` of a step, and what goes with them."""

    images_BCHW: torch.Tensor
    classes_B: torch.Tensor | None
    """Their classes `(B,)` int64, where there are any."""
    mirrored_BCHW: torch.Tensor | None = None
    """The latents of the mirror images; images are mirrored when they are needed."""


def flip_half(images_BCHW: torch.Tensor, mirrored_BCHW: torch.Tensor | None = None) -> torch.Tensor:
    """Mirror about half of the images, by torch's state of random numbers.

    Args:
        mirrored_BCHW: what takes the place of a mirrored image, for latents, which cannot be mirrored themselves.
    """
    if mirrored_BCHW is None:
        mirrored_BCHW = images_BCHW.flip(-1)

    is_mirrored_B = torch.rand(len(images_BCHW), 1, 1, 1, device=images_BCHW.device) < 0.5
    return torch.where(is_mirrored_B, mirrored_BCHW, images_BCHW)


class _ImageReader:
    """Reads the images of a batch."""

    def __init__(self, anchors: ImageSource, classes_N: np.ndarray | None):
        self.anchors = anchors
        self.classes_N = classes_N

    def __call__(self, places: Sequence[int]) -> TrainBatch:
        images = [to_model_range(self.anchors[place].image[None])[0] for place in places]
        return TrainBatch(default_collate(images), _classes(self.classes_N, places))


class _LatentReader:
    """Reads the latents of a batch."""

    def __init__(self, encoded: EncodedAnchors, classes_N: np.ndarray | None):
        self.encoded = encoded
        self.classes_N = classes_N

    def __call__(self, places: Sequence[int]) -> TrainBatch:
        latents_BVChw = self.encoded.rows(places)
        mirrored_BChw = latents_BVChw[:, 1] if self.encoded.flip else None
        return TrainBatch(latents_BVChw[:, 0], _classes(self.classes_N, places), mirrored_BChw)


def _classes(classes_N: np.ndarray | None, places: Sequence[int]) -> torch.Tensor | None:
    return None if classes_N is None else torch.from_numpy(classes_N[list(places)])


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
    encoded: EncodedAnchors | None = None,
) -> AbstractContextManager[Iterator[TrainBatch]]:
    """Read this rank's images of the steps `first` … `config.steps - 1` inside a block.

    Args:
        classes_N: the anchors' classes, for a conditional model.
        encoded: their latents, for a latent model, which are read in the place of the images.
    """
    order = ImageOrder(len(anchors), config, first, config.steps, rank, world_size)
    reader = _LatentReader(encoded, classes_N) if encoded else _ImageReader(anchors, classes_N)
    return worker_batches(reader, order, config.workers)
