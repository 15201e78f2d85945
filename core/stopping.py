"""Stopping between two steps instead of inside one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def leave_stopping_to_the_main_process(worker: int) -> None:
    """For loader processes: launchers signal a whole group, and a worker that dies would take the main one down."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stop_deferred() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGTERM and Ctrl-C are only noted; the function that is yielded tells whether one has come.

    In other threads than the main one, which get no signals, nothing changes.
    """
    requested = False

    def note(signum: int, frame: object) -> None:
        nonlocal requested
        if (
            requested and signum == signal.SIGINT
        ):  # a second Ctrl-C does not wait for the end of a step
            raise KeyboardInterrupt
        requested = True

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda: requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
