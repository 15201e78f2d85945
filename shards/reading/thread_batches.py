"""Read batches ahead in a thread, where a batch is a copy and no work."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

Batch = TypeVar("Batch")

AHEAD = 2
"""Batches that wait for the loop."""


@contextmanager
def thread_batches(
    read: Callable[[Any], Batch], order: Iterable[Any], ahead: int = AHEAD
) -> Iterator[Iterator[Batch]]:
    """Read batches ahead inside the block, whose value iterates over them; the thread has ended behind it.

    Args:
        read: makes a batch of an item of `order`, in the thread; its errors are raised where the batch is asked for.
        order: an item per batch.
        ahead: how many batches are read ahead.

    >>> with thread_batches(lambda item: item**2, range(4)) as batches:
    ...     list(batches)
    [0, 1, 4, 9]
    """
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as pool:
        waiting: deque[Future[Batch]] = deque()
        try:
            yield _in_turn(pool, read, iter(order), waiting, ahead)
        finally:
            for future in waiting:
                future.cancel()


def _in_turn(
    pool: ThreadPoolExecutor,
    read: Callable[[Any], Batch],
    order: Iterator[Any],
    waiting: deque[Future[Batch]],
    ahead: int,
) -> Iterator[Batch]:
    for item in islice(order, ahead):
        waiting.append(pool.submit(read, item))

    while waiting:
        future = waiting.popleft()
        for item in islice(order, 1):
            waiting.append(pool.submit(read, item))
        yield future.result()
