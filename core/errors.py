"""Define the three ways a command can end early; the command line maps each to its exit code."""


class InputError(ValueError):
    """Reports wrong usage or bad input, found before any work (exit code 2).

    The message is one line: what was found, what was expected, what to do.

    >>> raise InputError("anchors.size: -1; expected at least 0; 0 keeps the images as they are")
    Traceback (most recent call last):
    ...
    clsp.core.errors.InputError: anchors.size: -1; expected at least 0; 0 keeps the images as they are
    """


class WorkError(RuntimeError):
    """Reports work that failed or a check that found faults (exit code 1).

    >>> raise WorkError("layer-000/shard-000003.tar: 41 records, the plan has 64")
    Traceback (most recent call last):
    ...
    clsp.core.errors.WorkError: layer-000/shard-000003.tar: 41 records, the plan has 64
    """


class StopRequested(BaseException):  # not an error: the command goes on when it is run again
    """Ends a command that somebody asked to stop; what exists is complete and the command resumes (exit code 75).

    No `Exception`, as `KeyboardInterrupt` is none: it is raised by a signal handler, so anywhere, and the many
    `except Exception` of libraries, around optional imports or the decoding of an image, must not swallow it.

    >>> try:
    ...     raise StopRequested
    ... except Exception:
    ...     print("swallowed")
    ... except StopRequested:
    ...     print("the command ends")
    the command ends
    """
