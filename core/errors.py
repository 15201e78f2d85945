"""The three ways a command can end early; the command line maps each to its exit code."""


class InputError(ValueError):
    """Wrong usage or bad input, found before any work (exit code 2).

    The message is one line: what was found, what was expected, what to do.
    """


class WorkError(RuntimeError):
    """The work failed or a check found faults (exit code 1)."""


class StopRequested(Exception):  # noqa: N818  (not an error: the work goes on when the command is run again)
    """Somebody asked the command to stop; what exists is complete and the command resumes (exit code 75)."""
