"""Read pairs (anchor, candidate) as a torch Dataset, and load them in batches."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode  # and registers the operators below

from ...core import InputError, WorkError, differences
from ..format.codec import check_header
from .candidates import CandidateChoice
from .order import BatchOrder
from .pixel_cache import Member, Pixels
from .shard_set import ShardSet
from .thread_batches import thread_batches
from .worker_batches import worker_batches

DECODERS: dict[str, Any] = {
    "webp": torch.ops.image.decode_webp.default,
    "png": torch.ops.image.decode_png.default,
    "webp-90": torch.ops.image.decode_webp.default,
    "jpeg-95": torch.ops.image.decode_jpeg.default,
}
"""The operators that torchvision's functions of those names call after 12 µs of checks and warnings, a quarter of a
decode."""
RGB = ImageReadMode.UNCHANGED.value  # nothing to convert: `check_header` lets RGB alone through


def decode_image(
    content: bytes, codec: str, size: int, encoded: torch.Tensor | None = None
) -> torch.Tensor:
    """Decode an image to `(3, size, size)` uint8, in memory channels last.

    Args:
        encoded: the same bytes as a tensor, where there is one already.

    Raises:
        WorkError: another codec or size, found before memory is allocated for it.
        RuntimeError: the decoder's own.
    """
    check_header(content, codec, size)
    if encoded is None:
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)

    return DECODERS[codec](encoded, RGB)


@dataclass
class PairBatch:
    """Holds anchors and one candidate of each, `(B, 3, H, W)` uint8; `candidates_BCHW` is None where none is asked for.

    `weights_B` are the candidates' weights: 1 but where scores say otherwise. Where M > 1 candidates of each anchor are
    asked for, `candidates_BCHW` is `(B, M, 3, H, W)` and `weights_B` `(B, M)`.

    >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    >>> batch = PairBatch(images, None, torch.arange(4), torch.ones(4), keys=list("abcd"))
    >>> batch.labels_B.tolist()
    [0, 1, 2, 3]
    """

    anchors_BCHW: torch.Tensor
    candidates_BCHW: torch.Tensor | None
    labels_B: torch.Tensor
    weights_B: torch.Tensor
    keys: list[str]

    def pin_memory(self) -> "PairBatch":
        """Return the batch in page-locked memory, for asynchronous copies to a device."""
        candidates = None if self.candidates_BCHW is None else _pinned(self.candidates_BCHW)
        labels = self.labels_B.pin_memory()
        weights = self.weights_B.pin_memory()
        return PairBatch(_pinned(self.anchors_BCHW), candidates, labels, weights, self.keys)


def _pinned(images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return images in page-locked memory, or as they are if they are on a device already."""
    return images_BCHW.pin_memory() if images_BCHW.device.type == "cpu" else images_BCHW


class PairDataset(Dataset[PairBatch]):
    """Reads batches of pairs by `[(epoch, position), …]`; the candidate drawn depends on (seed, epoch, key) alone.

    Args:
        shards: the set.
        seed: of the draw.
        with_candidates: False reads no candidate at all.
        choice: among the candidates; uniform by default.
        count: how many different candidates of each anchor are drawn.
        pixels: a cache of decoded images, so that none is decoded twice.

    Raises:
        InputError: there are not that many.

    Labels are -1 where the set has none.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from clsp.shards.example import make_example_set
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pairs = PairDataset(make_example_set(Path(folder)), seed=0)
    ...     batch = pairs.__getitems__([(0, 2), (0, 3)])  # epoch 0, positions 2 and 3
    >>> batch.keys
    ['train_00000002', 'train_00000003']
    >>> batch.candidates_BCHW.shape
    torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        shards: ShardSet,
        seed: int,
        with_candidates: bool = True,
        choice: CandidateChoice | None = None,
        count: int = 1,
        pixels: Pixels | None = None,
    ):
        if with_candidates and count > max(1, shards.candidates):
            raise InputError(
                f"{count} different candidates of each anchor are asked for (pretrain.synthetic.candidates), "
                f"{shards.root} has {shards.candidates}; ask for fewer, or make more: clsp shards extend"
            )

        self.shards = shards
        self.seed = seed
        self.with_candidates = with_candidates
        self.choice = choice or CandidateChoice(seed)
        self.count = count
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def is_filled(self) -> bool:
        """Return True if there is a cache that has the pixels already; anchors that a set lacks are in none."""
        if self.pixels is None or not self.shards.plan.shards.include_anchors:
            return False
        return self.pixels.is_filled(self.with_candidates)

    def pinned_items(self, items: Sequence[tuple[int, int]]) -> PairBatch:
        """Return a batch in page-locked memory."""
        return self.__getitems__(items).pin_memory()

    def __getitem__(self, item: tuple[int, int]) -> PairBatch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[tuple[int, int]]) -> PairBatch:
        positions = [position for _, position in items]
        found = [self.shards.key_and_label(position) for position in positions]
        keys = [key for key, _ in found]
        labels = [-1 if label is None else label for _, label in found]

        candidates = None
        weights = torch.ones(len(keys))
        if self.with_candidates:
            candidates, weights = self._candidates(items, keys)

        return PairBatch(
            anchors_BCHW=self._anchors(positions),
            candidates_BCHW=candidates,
            labels_B=torch.tensor(labels),
            weights_B=weights,
            keys=keys,
        )

    def _anchors(self, positions: Sequence[int]) -> torch.Tensor:
        if not self.shards.plan.shards.include_anchors:
            anchors = []
            for position in positions:
                anchors.append(torch.from_numpy(self.shards.anchor(position).copy()))
            return torch.stack(anchors).permute(0, 3, 1, 2)

        layer = self.shards.layers[0]
        return self._decode([(layer, position, 0) for position in positions])

    def _candidates(
        self, items: Sequence[tuple[int, int]], keys: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the candidates drawn for a batch and their weights, with a dimension for M where it is above 1."""
        members = []
        weights_BM = []
        for (epoch, position), key in zip(items, keys, strict=True):
            numbers, weights = self.choice.draw_several(
                epoch, position, key, self.shards.candidates, self.count
            )
            for number in numbers:
                layer, member = self.shards.candidate_member(number)
                members.append((layer, position, member))
            weights_BM.append(weights)

        images = self._decode(members)
        if self.count == 1:
            return images, torch.tensor(weights_BM)[:, 0]

        return images.unflatten(0, (len(keys), self.count)), torch.tensor(weights_BM)

    def _decode(self, members: Sequence[Member]) -> torch.Tensor:
        """Return members (layer, position, place in the record) as `(B, 3, H, W)`, in memory channels last."""
        if self.pixels is None:
            images_BHWC = self._decode_all(members)
        else:
            images_BHWC = self.pixels.tensor(members, self._decode_all)

        return images_BHWC.permute(0, 3, 1, 2)

    def _decode_all(self, members: Sequence[Member]) -> torch.Tensor:
        """Decode members to `(B, H, W, 3)`."""
        # One tensor of all bytes, split without a copy, is quicker than a tensor of each.
        contents = [self.shards.member_bytes(*member) for member in members]
        joined = torch.frombuffer(bytearray().join(contents), dtype=torch.uint8)
        tensors = joined.split([len(content) for content in contents])
        size = self.shards.size
        images = []

        try:
            for content, encoded, member in zip(contents, tensors, members, strict=True):
                image = decode_image(content, member[0].plan.shards.codec, size, encoded)
                images.append(image.permute(1, 2, 0))  # as decoded, so stacking copies straight
        except (RuntimeError, WorkError) as error:
            _, position, _ = members[len(images)]
            key = self.shards.key(position)
            raise self.shards.damaged(key, f"does not decode ({error})") from error

        return torch.stack(images)


class PairLoader:
    """Loads this rank's parts of the global batches up to `last`, from `first` on or from a saved state; iterate it.

    Never pass it through `accelerator.prepare()`: it already holds this rank's slices only.

    Args:
        last: one past the last global batch, counted over epochs.
        first: the first one.
        workers: decoding processes; they change nothing but the speed. With a cache of pixels that is filled a thread
            reads in their place.

    `waited` are the seconds that the loop had to wait for batches.

    >>> import tempfile
    >>> from pathlib import Path
    >>> from clsp.shards.example import make_example_set
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = make_example_set(Path(folder), anchors=8)
    ...     order = BatchOrder(shards.shard_sizes, shards.plan.digest, seed=0, batch_size=4)
    ...     for batch in PairLoader(PairDataset(shards, seed=0), order, last=2):
    ...         batch.anchors_BCHW.shape
    torch.Size([4, 3, 8, 8])
    torch.Size([4, 3, 8, 8])
    """

    def __init__(
        self, dataset: PairDataset, order: BatchOrder, last: int, first: int = 0, workers: int = 0
    ):
        self.dataset = dataset
        self.order = order
        self.last = last
        self.workers = workers
        self.batch = first
        self.waited = 0.0

    def __len__(self) -> int:
        return self.last - self.batch

    def __iter__(self) -> Iterator[PairBatch]:
        with self.reading() as batches:
            yield from batches

    @contextmanager
    def reading(self) -> Iterator[Iterator[PairBatch]]:
        """Read inside the block, whose value iterates over the batches; its workers have ended behind it.

        Raises:
            WorkError: a record is damaged, or a worker was killed.
        """
        with ExitStack() as stack:
            yield self._counted(self._batches(stack))

        if self.dataset.pixels is not None:
            self.dataset.pixels.finish()

    def _batches(self, stack: ExitStack) -> Iterator[PairBatch]:
        """Yield batches by workers, and once all their pixels are cached by a thread, which is faster then."""
        pin_memory = torch.cuda.is_available()
        if not self.dataset.is_filled:
            order = _Batches(self.order, self.batch, self.last, lambda: self.dataset.is_filled)
            decoding = worker_batches(self.dataset.__getitems__, order, self.workers, pin_memory)
            yield from stack.enter_context(decoding)

        if self.batch < self.last:
            order = self.order.batches(self.batch, self.last)
            read = self.dataset.pinned_items if pin_memory else self.dataset.__getitems__
            yield from stack.enter_context(thread_batches(read, order))

    def _counted(self, batches: Iterator[PairBatch]) -> Iterator[PairBatch]:
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - started
            if batch is None:
                return

            self.batch += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the reading after the batches handed out so far, for any number of processes."""
        epoch, batch = divmod(self.batch, self.order.batches_per_epoch)
        seen = batch * self.order.batch_size
        return {
            **self.dataset.shards.identity,
            "seed": self.dataset.seed,
            "epoch": epoch,
            "samples_seen": seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the batches of `state`.

        Raises:
            InputError: the state is of another plan, of layers with another content, or of another seed; or it lies
                inside a batch of this size.
        """
        here = {**self.dataset.shards.identity, "seed": self.dataset.seed}
        faults = differences({key: state.get(key) for key in here}, here)
        if faults:
            raise InputError(
                f"the data is not what the run was reading ({'; '.join(faults)}); give it the same set"
            )

        batch, rest = divmod(int(state["samples_seen"]), self.order.batch_size)
        if rest:
            raise InputError(
                f"{state['samples_seen']} samples were seen, no multiple of {self.order.batch_size}"
            )

        self.batch = int(state["epoch"]) * self.order.batches_per_epoch + batch


class _Batches:
    """Yields the batches of `order`, made one by one: an epoch of millions is never held as Python objects.

    They end before `last` at the end of an epoch behind which `is_enough` says so.
    """

    def __init__(self, order: BatchOrder, first: int, last: int, is_enough: Callable[[], bool]):
        self.order = order
        self.first = first
        self.last = last
        self.is_enough = is_enough

    def __iter__(self):
        per_epoch = self.order.batches_per_epoch
        first = self.first
        while first < self.last:
            end = min(self.last, (first // per_epoch + 1) * per_epoch)
            yield from self.order.batches(first, end)
            if self.is_enough():
                return
            first = end

    def __len__(self) -> int:
        return self.last - self.first
