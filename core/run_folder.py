"""Find out whose an output folder is, so that nothing that existed is ever overwritten."""

import contextlib
import errno
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from .errors import InputError
from .files import locked

RECIPE = "recipe.toml"
ASIDE = "stopped"
HELD = ".clsp"
LOCKLESS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP}
"""What a file system without locks answers; work goes on without one there."""

log = logging.getLogger(__name__)


@contextlib.contextmanager
def holding(
    folder: Path,
    is_main_process: bool = True,
    on_any_rank: Callable[[bool], bool] = bool,
) -> Iterator[bool]:
    """Keep other work out of an output folder while the block runs; the lock ends with its holder.

    Gives False where the file system has no locks, so that another process may work there all the same.

    Args:
        is_main_process: it alone locks, for all ranks.
        on_any_rank: returns True on every rank if it is given True on any.

    Raises:
        InputError: another process works there; on all ranks.
    """
    with contextlib.ExitStack() as held:
        is_taken = False
        is_lockless = False
        if is_main_process:
            try:
                held.enter_context(locked(folder / HELD, wait=False))
            except BlockingIOError:
                is_taken = True
            except OSError as error:
                if error.errno not in LOCKLESS:
                    raise
                is_lockless = True

        if on_any_rank(is_taken):
            raise InputError(
                f"another process works in {folder}; wait for it, or choose another --out"
            )
        yield not on_any_rank(is_lockless)


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


def set_aside(folder: Path, names: Iterable[str], marker: str) -> Path:
    """Move what work without a result has left in `folder` into a new folder in there, and return that.

    Args:
        names: files and folders, as far as they are there.
        marker: the file that names the owner; it is copied, so that the folder has one at any time.
    """
    number = 1
    while (folder / f"{ASIDE}-{number}").exists():
        number += 1
    aside = folder / f"{ASIDE}-{number}"
    aside.mkdir()

    for name in names:
        if (folder / name).exists():
            (folder / name).rename(aside / name)
    shutil.copyfile(folder / marker, aside / marker)

    log.warning(
        "clsp: what other settings left in %s without a checkpoint is now in %s", folder, aside
    )
    return aside


def _counts(path: Path) -> bool:
    """Return True for a file that makes a folder foreign: no temporary one, not the recipe of the starting command."""
    return path.name[0] != "." and path.name != RECIPE
