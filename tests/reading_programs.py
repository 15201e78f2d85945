"""Programs that read with workers, for processes of their own."""

import multiprocessing
import os
import signal
import sys
import time

from clsp.shards.reading.worker_batches import worker_batches


def read(item):
    """Return the item's square."""
    return item**2


def fail_inside() -> None:
    with worker_batches(read, range(100), 3) as batches:
        raise KeyError(next(batches))


def fail_in_a_loop_that_nothing_closes() -> None:
    """The error holds the loop's frame until the program ends."""
    block = worker_batches(read, range(100), 3)
    for batch in block.__enter__():
        raise KeyError(batch)


def fail_where_killed_workers_die_at_once() -> None:
    """As on a busy machine: the signal of a killed worker arrives before the main process waits for it."""
    kill = multiprocessing.Process.kill

    def kill_and_be_interrupted(worker) -> None:
        kill(worker)
        time.sleep(0.5)

    multiprocessing.process.BaseProcess.kill = kill_and_be_interrupted
    fail_in_a_loop_that_nothing_closes()


def be_killed() -> None:
    with worker_batches(read, range(100), 3) as batches:
        next(batches)
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(3600)


if __name__ == "__main__":
    globals()[sys.argv[1]]()
