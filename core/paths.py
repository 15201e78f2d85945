"""Turn what a user gives as a local path into one."""

import os

from .errors import InputError

FILE = "file://"


def local_path(text: str) -> str:
    """Return the path that `file:///…` or `~/…` names; all other text, names and URLs too, as it is.

    Shells leave a `~` inside of an argument alone, so that `--out=~/runs` would make a folder of that name.

    Raises:
        InputError: a file URL of another machine.

    >>> local_path("file:///data/photos"), local_path("photos"), local_path("s3://bucket/set")
    ('/data/photos', 'photos', 's3://bucket/set')
    """
    if text.startswith(FILE):
        path = text.removeprefix(FILE).removeprefix("localhost")
        if not path.startswith("/"):
            raise InputError(f"{text}: expected a file on this machine, as file:///PATH")
        return path

    return os.path.expanduser(text)  # noqa: PTH111  (a Path would swallow the // of a URL)
