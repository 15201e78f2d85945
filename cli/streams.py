"""Make standard output and standard error safe to write to, however the command was started."""

import os
import select
import sys

READER_GONE = 128 + 13
"""The exit code that a shell gives to a command whose reader has gone (SIGPIPE)."""


def prepare_streams() -> None:
    """Open what is closed (`>&-`) on nothing, and let no character fail that the locale does not have."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # Else the next file that is opened would take the number, and get what is printed.
            os.open(os.devnull, os.O_RDWR)

    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def reader_is_gone() -> bool:
    """Return True if nobody reads any more what the command prints, as behind `| head -1`."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))


def drop_output() -> None:
    """Send to nowhere what is still to be printed, also at the interpreter's end."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
