"""Order the reading: a pure function of (plan digest, seed, epoch), the same for any number of processes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...core import InputError, permutation

WINDOW = 16
"""Shards whose records are shuffled together: what a process keeps in the page cache."""


class EpochOrder:
    """Gives the positions of all records in the order of an epoch: each exactly once, made a window at a time.

    Shards are permuted, then the records of every `window` consecutive ones are shuffled together.
    """

    def __init__(
        self,
        shard_sizes: Sequence[int],
        plan_digest: str,
        seed: int,
        epoch: int,
        window: int = WINDOW,
    ):
        sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.window = window
        self._stream = (plan_digest, seed, epoch)
        self._firsts = np.concatenate([[0], np.cumsum(sizes)])
        self._shards = permutation(len(sizes), *self._stream, "shards")

        # The places where each window starts, and the end of the last one.
        ends = np.cumsum(sizes[self._shards])
        self._starts = np.concatenate([[0], ends[window - 1 : -1 : window], ends[-1:]])
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def positions(self, start: int, stop: int) -> np.ndarray:
        """Return the positions at the places `start` … `stop - 1` of the epoch's order, int64."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        parts = []
        for number in range(first, len(self._starts) - 1):
            begin = int(self._starts[number])
            end = int(self._starts[number + 1])
            if begin >= stop:
                break

            window = self._window(number)
            parts.append(window[max(start - begin, 0) : min(stop, end) - begin])

        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _window(self, number: int) -> np.ndarray:
        if self._cached[0] != number:
            chosen = self._shards[number * self.window : (number + 1) * self.window]
            ranges = []
            for shard in chosen:
                ranges.append(np.arange(int(self._firsts[shard]), int(self._firsts[shard + 1])))

            positions = np.concatenate(ranges)
            shuffled = permutation(len(positions), *self._stream, "records", number)
            self._cached = (number, positions[shuffled])

        return self._cached[1]


def epoch_order(
    shard_sizes: Sequence[int], plan_digest: str, seed: int, epoch: int, window: int = WINDOW
) -> np.ndarray:
    """Return the whole order of an epoch, `(N,)` int64."""
    return EpochOrder(shard_sizes, plan_digest, seed, epoch, window).positions(0, sum(shard_sizes))


@dataclass(frozen=True)
class BatchOrder:
    """Gives the global batches of a run and each rank's slice of them; the last short batch of an epoch is dropped.

    Args:
        batch_size: samples per global batch; at most all of them, and divisible by `world_size`.

    Raises:
        InputError: the batch is larger than the set, so that no epoch had any, or not divisible.

    >>> order = BatchOrder(shard_sizes=[4, 4, 2], plan_digest="", seed=0, batch_size=4)
    >>> order.batches_per_epoch
    2
    >>> [len(batch) for batch in order.batches(0, 2)]
    [4, 4]
    """

    shard_sizes: Sequence[int]
    plan_digest: str
    seed: int
    batch_size: int
    rank: int = 0
    world_size: int = 1
    _samples: int = field(init=False, repr=False, default=0)

    def __post_init__(self):
        object.__setattr__(self, "_samples", sum(self.shard_sizes))
        if not 1 <= self.batch_size <= self._samples:
            raise InputError(
                f"batch_size is {self.batch_size}, the set has {self._samples} anchors; lower it"
            )
        if self.batch_size % self.world_size:
            raise InputError(
                f"batch_size is {self.batch_size}, not divisible by the {self.world_size} processes"
            )

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of global batches in an epoch, equal on every rank."""
        return self._samples // self.batch_size

    def batches(self, first: int, last: int) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's `[(epoch, position), …]` of global batches `first` … `last - 1`, counted over epochs."""
        local = self.batch_size // self.world_size
        order = None
        order_epoch = -1

        for batch in range(first, last):
            epoch, number = divmod(batch, self.batches_per_epoch)
            if order is None or epoch != order_epoch:
                order = EpochOrder(self.shard_sizes, self.plan_digest, self.seed, epoch)
                order_epoch = epoch

            start = number * self.batch_size + self.rank * local
            positions = order.positions(start, start + local)
            yield [(epoch, position) for position in positions.tolist()]
