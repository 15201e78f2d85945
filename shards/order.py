"""The reading order: a pure function of (plan digest, seed, epoch), the same for any number of processes."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

WINDOW = 16
"""Shards whose records are shuffled together: what a process keeps in the page cache."""


def stream_key(*parts: object) -> int:
    """A 64-bit number that names a random stream."""
    text = "\0".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def stream_seed(*parts: object) -> int:
    """The number of the stream as a seed for torch's generators: 63 bits, never negative."""
    return stream_key(*parts) % 2**63


def permutation(count: int, *stream: object) -> np.ndarray:
    """A permutation of 0 … count-1 that depends on `stream` alone.

    Sorts the raw 64-bit output of NumPy's Philox, which NumPy guarantees never to change (it gives no such promise
    for `Generator.permutation`).
    """
    draws = np.random.Philox(key=stream_key(*stream)).random_raw(count)
    return np.argsort(draws, kind="stable")


def epoch_order(shard_sizes: list[int], plan_digest: str, seed: int, epoch: int, window: int = WINDOW) -> np.ndarray:
    """The positions of all records in the order of an epoch, `(N,)` int64: each exactly once.

    Shards are permuted, then the records of every `window` consecutive ones are shuffled together.
    """
    firsts = np.concatenate([[0], np.cumsum(shard_sizes)])
    shards = permutation(len(shard_sizes), plan_digest, seed, epoch, "shards")
    parts = []
    for number, start in enumerate(range(0, len(shards), window)):
        chosen = shards[start : start + window]
        positions = np.concatenate([np.arange(int(firsts[shard]), int(firsts[shard + 1])) for shard in chosen])
        parts.append(positions[permutation(len(positions), plan_digest, seed, epoch, "records", number)])
    return np.concatenate(parts)


def draw_candidate(seed: int, epoch: int, key: str, candidates: int) -> int:
    """The candidate of a sample in an epoch, uniform over 0 … candidates-1: a pure function of (seed, epoch, key)."""
    return stream_key(seed, epoch, key, "candidate") % candidates


@dataclass(frozen=True)
class BatchOrder:
    """The global batches of a run and each rank's slice of them; the last short batch of an epoch is dropped.

    Args:
        batch_size: samples per global batch; divisible by `world_size`.
    """

    shard_sizes: list[int]
    plan_digest: str
    seed: int
    batch_size: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        if self.batch_size % self.world_size:
            raise ValueError(f"batch of {self.batch_size} is not divisible by {self.world_size} processes")

    @property
    def batches_per_epoch(self) -> int:
        """Global batches in an epoch, equal on every rank."""
        return sum(self.shard_sizes) // self.batch_size

    def batches(self, first: int, last: int) -> Iterator[list[tuple[int, int]]]:
        """This rank's part `[(epoch, position), …]` of the global batches `first` … `last - 1`, counted over epochs."""
        local = self.batch_size // self.world_size
        order, order_epoch = np.empty(0, np.int64), -1
        for batch in range(first, last):
            epoch, number = divmod(batch, self.batches_per_epoch)
            if epoch != order_epoch:
                order, order_epoch = epoch_order(self.shard_sizes, self.plan_digest, self.seed, epoch), epoch
            start = number * self.batch_size + self.rank * local
            yield [(epoch, int(position)) for position in order[start : start + local]]
