"""Stop between two steps instead of inside one."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def leave_stopping_to_the_main_process(worker: int) -> None:
    """Ignore signals in a loader process: a signal goes to the whole group, and a dying worker ends the main one."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stop_deferred() -> Iterator[Callable[[], bool]]:
    """Note SIGTERM and Ctrl-C inside the block instead of acting on them; yield a function that says if one has come.

    In other threads than the main one, which get no signals, nothing changes.
    """
    requested = False

    def note(signum: int, frame: object) -> None:
        nonlocal requested
        # A second Ctrl-C does not wait for the end of a step.
        if requested and signum == signal.SIGINT:
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
