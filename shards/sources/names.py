"""Name a source as plans and listings record it."""

from collections.abc import Iterable
from pathlib import Path

from ...core import local_path
from ...core.paths import FILE

NAMED = 5
"""Names that a message shows."""


def some(names: Iterable[str]) -> str:
    """Return the first few names, for a message.

    >>> some("abcdefg")
    'a, b, c, d, e and 2 more'
    """
    told = list(names)
    rest = len(told) - NAMED
    return ", ".join(told[:NAMED]) + (f" and {rest} more" if rest > 0 else "")


def source_name(path: str) -> str:
    """Return the last part of a path that exists, else the text as it is: a hub id.

    A path with ~ is recorded as it was given.

    >>> source_name("uoft-cs/cifar10")
    'uoft-cs/cifar10'
    """
    plain = Path(local_path(path) if path.startswith(FILE) else path)
    if not plain.exists():
        return path

    return plain.name or plain.resolve().name
