"""Find out whose an output folder is, so that nothing that existed is ever overwritten."""

from pathlib import Path

from .errors import InputError

RECIPE = "recipe.toml"


def owner_of(folder: Path, marker: str, kind: str) -> bytes | None:
    """Return the content of the file `marker` that names the folder's owner, or None where the folder is free to use.

    Args:
        kind: what the folder should hold, for the message.

    Raises:
        InputError: the folder holds something else.
    """
    path = folder / marker
    if path.exists():
        return path.read_bytes()

    if not folder.exists():
        return None

    is_foreign = not folder.is_dir() or any(_counts(child) for child in folder.iterdir())
    if not is_foreign:
        return None

    if path.exists():  # another process has written it since
        return path.read_bytes()

    raise InputError(f"{folder} exists and is no {kind}; choose an empty or new --out")


def _counts(path: Path) -> bool:
    """Return True for a file that makes a folder foreign: no temporary one, not the recipe of the starting command."""
    return path.name[0] != "." and path.name != RECIPE
