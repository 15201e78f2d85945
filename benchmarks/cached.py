"""The part of shards.py on pixels that are decoded once: the rates of reading from the cache, and its first epoch."""

import contextlib
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clsp.shards import BatchOrder, PairDataset, PairLoader, ShardSet
from clsp.shards.reading.pixel_cache import PixelCache
from made_sets import BATCH, SEED, verdict

BATCHES = 192
CACHED, ONE_PROCESS, DECODE_ALONE = "from the cache", "one process", "decode alone, 2 processes"
TARGETS = {ONE_PROCESS: 6.0, DECODE_ALONE: 2.0}
FIRST_EPOCH = 1.3


def _epoch(shards: ShardSet, pixels: PixelCache | None, workers: int) -> float:
    """Measure the seconds of the first epoch, workers' start included."""
    started = time.perf_counter()
    order = BatchOrder(shards.shard_sizes, shards.plan.digest, SEED, BATCH)
    if pixels is not None:
        pixels.open()

    dataset = PairDataset(shards, SEED, pixels=pixels)
    for _ in PairLoader(dataset, order, order.batches_per_epoch, workers=workers):
        pass

    return time.perf_counter() - started


def _rate(shards: ShardSet, pixels: PixelCache | None, batches: int) -> float:
    """Measure the pairs per second of so many batches, in one process."""
    order = BatchOrder(shards.shard_sizes, shards.plan.digest, SEED, BATCH)
    loader: Any = iter(PairLoader(PairDataset(shards, SEED, pixels=pixels), order, batches + 4))
    with contextlib.closing(loader):
        for _ in range(4):
            next(loader)

        started = time.perf_counter()
        for _ in range(batches):
            next(loader)
        return batches * BATCH / (time.perf_counter() - started)


def measure_cache(
    root: Path, folder: Path, rounds: int, decode_alone: Callable[[], float]
) -> dict[str, list[float]]:
    """Measure reading with and without the cache, and the bare decoder on two cores; the sides take turns."""
    first_epoch = {w: f"first epoch, {w} workers, time with / without" for w in (0, 2)}
    found: dict[str, list[float]] = {
        name: [] for name in (CACHED, ONE_PROCESS, DECODE_ALONE, *first_epoch.values())
    }

    shards = ShardSet(root)
    for number in range(rounds):
        # The first epoch
        for workers, name in first_epoch.items():
            cache = PixelCache(shards, folder / f"cache-{number}-{workers}")
            cached = _epoch(shards, cache, workers)
            found[name].append(cached / _epoch(shards, None, workers))

        # All later ones
        cache = PixelCache(shards, folder / f"cache-{number}-0")
        cache.open()
        while not cache.is_filled(True):
            _rate(shards, cache, 512)

        found[CACHED].append(_rate(shards, cache, BATCHES))
        found[ONE_PROCESS].append(_rate(shards, None, 32))
        found[DECODE_ALONE].append(decode_alone())
        for workers in first_epoch:
            shutil.rmtree(folder / f"cache-{number}-{workers}")

    return found


def print_cache(found: dict[str, list[float]]) -> None:
    print("\npairs per second, pixels decoded once")
    for name, values in found.items():
        median = statistics.median(values)
        if name.startswith("first epoch"):
            reached = verdict(median <= FIRST_EPOCH)
            spread = f"({min(values):.2f} … {max(values):.2f})"
            print(f"  {name}: {median:.2f} {spread}, target {FIRST_EPOCH} at most: {reached}")
            continue

        line = f"  {name:26} {median:9,.0f}/s  ({min(values):,.0f} … {max(values):,.0f})"
        if name in TARGETS:
            pairs = zip(found[CACHED], values, strict=True)
            ratio = statistics.median(ours / other for ours, other in pairs)
            reached = verdict(ratio >= TARGETS[name])
            line += f"   cache / it = {ratio:.1f}, target {TARGETS[name]}: {reached}"
        print(line, flush=True)
