"""Name a source as plans and listings record it."""

from pathlib import Path

from ...core import local_path
from ...core.paths import FILE


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
