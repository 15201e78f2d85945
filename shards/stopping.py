"""Stopping between two steps instead of inside one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextlib.contextmanager
def stop_deferred() -> Iterator[Callable[[], bool]]:
    """Inside the block SIGTERM and Ctrl-C are only noted; the function that is yielded tells whether one has come.

    In other threads than the main one, which get no signals, nothing changes.
    """
    requested = False

    def note(signum: int, frame: object) -> None:
        nonlocal requested
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
