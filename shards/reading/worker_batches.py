"""Read batches in worker processes, whose errors arrive as themselves and who end with the main process."""

import atexit
import pickle
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.util import Finalize
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset, get_worker_info

from ...core import WorkError, leave_stopping_to_the_main_process

Batch = TypeVar("Batch")


@contextmanager
def worker_batches(
    read: Callable[[Any], Batch], order: Iterable[Any], workers: int, pin_memory: bool = False
) -> Iterator[Iterator[Batch]]:
    """Read batches ahead inside the block, whose value iterates over them; the workers have ended behind it.

    Use it inside `stop_deferred`: workers ignore the signals that ask a job to stop.

    Args:
        read: makes a batch of an item of `order`, in a worker.
        order: an item per batch.
        workers: processes; with 0 the main process reads.
        pin_memory: batches arrive in page-locked memory.

    Raises:
        WorkError: a worker was killed.
        Exception: what `read` raised; a note has the worker's traceback.
    """
    loader = DataLoader(
        _Reader(read),
        sampler=order,
        batch_size=None,
        collate_fn=_as_it_is,
        num_workers=workers,
        worker_init_fn=leave_stopping_to_the_main_process,
        pin_memory=pin_memory,
    )
    batches: Any = iter(loader)
    if workers == 0:
        yield _raising(batches)
        return

    # Also at the program's end: an error that leaves a loop may keep the loop, and so this block, until then.
    # Finalize is for processes that multiprocessing started, which run no atexit. In all others atexit runs what was
    # registered last first: this before torch's own, after which torch no longer ends its workers.
    end = Finalize(None, _end_workers, [batches], exitpriority=100)
    atexit.register(end)
    try:
        yield _raising(batches)
    except RuntimeError as error:
        killed = _killed_worker(batches)
        if killed is None:
            raise
        raise WorkError(
            f"a worker that reads images was killed (exit code {killed}); "
            "if memory ran out, set fewer workers"
        ) from error
    finally:
        atexit.unregister(end)
        end()


@dataclass(frozen=True)
class _Fault:
    """Carries an error from a worker to the main process, which raises it."""

    error: Exception


class _Reader(Dataset[Any]):
    def __init__(self, read: Callable[[Any], Any]):
        self.read = read

    def __getitem__(self, index: Any) -> Any:
        if get_worker_info() is None:
            return self.read(index)

        # torch would make a new error of the traceback's text.
        try:
            return self.read(index)
        except Exception as error:
            return _Fault(_portable(error))


def _portable(error: Exception) -> Exception:
    """Return the error, its traceback noted down, in a form that another process can read."""
    note = "In a worker: " + "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # it holds, or asks for, what cannot be sent
        error = RuntimeError(f"{type(error).__name__}: {error}")

    error.add_note(note)
    return error


def _raising(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield the batches; raise the error that comes in the place of one."""
    for batch in batches:
        if isinstance(batch, _Fault):
            raise batch.error
        yield batch


def _killed_worker(batches: Any) -> int | None:
    """Return the exit code of a worker that ended by itself, None if there is none."""
    for worker in batches._workers:
        if worker.exitcode:
            return worker.exitcode
    return None


def _end_workers(batches: Any) -> None:
    """End the workers: politely, and those by force that are stuck, for they ignore torch's SIGTERM."""
    try:
        # Torch raises this from a signal handler where a worker was killed; those that are left are killed below.
        with suppress(RuntimeError):
            batches._shutdown_workers()
    finally:
        for worker in batches._workers:
            if worker.is_alive():
                worker.kill()
                worker.join()


def _as_it_is(batch: Any) -> Any:
    return batch
