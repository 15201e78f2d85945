"""A torch Dataset of pairs (anchor, candidate), and its loader. The only module of `shards` that imports torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image

from .errors import WorkError
from .order import BatchOrder, draw_candidate
from .reader import ShardSet


@dataclass
class PairBatch:
    """Anchors and one candidate of each, `(B, 3, H, W)` uint8; `candidates_BCHW` is None where none is asked for."""

    anchors_BCHW: torch.Tensor
    candidates_BCHW: torch.Tensor | None
    labels_B: torch.Tensor
    keys: list[str]

    def pin_memory(self) -> "PairBatch":
        """The batch in page-locked memory, for asynchronous copies to a device."""
        candidates = None if self.candidates_BCHW is None else self.candidates_BCHW.pin_memory()
        return PairBatch(self.anchors_BCHW.pin_memory(), candidates, self.labels_B.pin_memory(), self.keys)


class PairDataset(Dataset[PairBatch]):
    """Batches of pairs by `[(epoch, position), …]`; the candidate drawn depends on (seed, epoch, key) alone.

    Args:
        shards: the set.
        seed: of the draw.
        with_candidates: False reads no candidate at all.

    Labels are -1 where the set has none.
    """

    def __init__(self, shards: ShardSet, seed: int, with_candidates: bool = True):
        self.shards, self.seed, self.with_candidates = shards, seed, with_candidates
        self._labels = torch.from_numpy(shards.index.labels.fill_null(-1).to_numpy().copy())

    def __len__(self) -> int:
        return len(self.shards)

    def __getitem__(self, item: tuple[int, int]) -> PairBatch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> PairBatch:
        keys = [self.shards.key(position) for _, position in items]
        anchors = torch.stack([self._anchor(position) for _, position in items])
        candidates = None
        if self.with_candidates:
            drawn = zip(items, keys, strict=True)
            candidates = torch.stack([self._candidate(epoch, position, key) for (epoch, position), key in drawn])
        labels = self._labels[[position for _, position in items]]
        return PairBatch(anchors, candidates, labels, keys)

    def _anchor(self, position: int) -> torch.Tensor:
        content = self.shards.anchor_bytes(position)
        if content is None:
            return torch.from_numpy(self.shards.anchor(position).copy()).permute(2, 0, 1)
        return self._decode(content, position)

    def _candidate(self, epoch: int, position: int, key: str) -> torch.Tensor:
        candidate = draw_candidate(self.seed, epoch, key, self.shards.candidates)
        return self._decode(self.shards.candidate_bytes(position, candidate), position)

    def _decode(self, content: bytes, position: int) -> torch.Tensor:
        size, where = self.shards.size, f"{self.shards.root}: record {self.shards.key(position)}"
        # torchvision's decoder is the fastest measured; since 0.29 it announces that TorchCodec will take its place.
        try:  # torch.frombuffer wants a writable buffer; the copy is of a few kilobytes
            image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
        except RuntimeError as error:
            raise WorkError(f"{where} does not decode ({error})") from error
        if image.shape != (3, size, size):
            raise WorkError(f"{where} has the shape {tuple(image.shape)}, expected (3, {size}, {size})")
        return image


def pair_loader(
    dataset: PairDataset, order: BatchOrder, first: int, last: int, workers: int = 0
) -> DataLoader[PairBatch]:
    """A loader of this rank's parts of the global batches `first` … `last - 1`; starting at `first` is the resume.

    Never pass it through `accelerator.prepare()`: it already holds this rank's slices only.
    """
    return DataLoader(
        dataset,
        batch_sampler=_BatchSampler(order, first, last),
        collate_fn=_already_batched,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
    )


def _already_batched(batch: Any) -> PairBatch:
    return batch


class _BatchSampler:
    """The batches of `order`, made one by one: an epoch of millions is never held as Python objects."""

    def __init__(self, order: BatchOrder, first: int, last: int):
        self.order, self.first, self.last = order, first, last

    def __iter__(self):
        return self.order.batches(self.first, self.last)

    def __len__(self) -> int:
        return self.last - self.first
