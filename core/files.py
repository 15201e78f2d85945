"""Write files that either exist whole or not at all, whatever kills the process."""

import contextlib
import fcntl
import os
import re
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

TEMPORARY_SUFFIX = ".tmp"


def sync_directory(directory: Path) -> None:
    """Make the names in `directory` durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(directory: Path) -> None:
    """Make `directory` and its missing parents, each with its name durable."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the name `path`, fsynced, only when the block ends without an exception.

    The temporary name is unique per writer, so several writers of one path never see each other's bytes.
    """
    make_directory(path.parent)
    writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{writer}{TEMPORARY_SUFFIX}")

    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise

    sync_directory(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write `content` to `path` durably and atomically."""
    with replacing(path) as file:
        file.write(content)


def remove_temporaries(root: Path) -> None:
    """Remove the temporary files below `root` that dead writers of this machine left behind; all others stay."""
    mine = re.compile(
        rf"\.{re.escape(socket.gethostname())}-(\d+)-[0-9a-f]+{re.escape(TEMPORARY_SUFFIX)}$"
    )
    for path in root.rglob(f".*{TEMPORARY_SUFFIX}"):
        writer = mine.search(path.name)
        if writer and not _is_alive(int(writer[1])):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Hold a lock on `path`, with `.lock` behind its name, among all processes and threads.

    It ends with its holder, whatever kills that.

    Raises:
        BlockingIOError: another one holds it, and `wait` is False.
    """
    lock = path.with_name(f"{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        mode = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        fcntl.flock(file, mode)

        try:
            yield
        finally:
            # Closing alone would not release it while a forked child has the file.
            fcntl.flock(file, fcntl.LOCK_UN)
