"""Write files that either exist whole or not at all, whatever kills the process."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import WorkError

TEMPORARY_SUFFIX = ".tmp"
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""What the system answers where nothing more can be written: no room, quota, read-only, `ulimit -f`."""


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


class _NotingFile:
    """A file that remembers why it could not be written: libraries answer that with errors of their own."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.fault: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes."""
        try:
            return self._file.write(content)
        except OSError as error:
            self.fault = error
            raise

    def sync(self) -> None:
        """Make the bytes durable; a disk that is full may say so only here."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            self.fault = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that takes the name `path`, fsynced, only when the block ends without an exception.

    The temporary name is unique per writer, so several writers of one path never see each other's bytes.

    Raises:
        OSError: it cannot be written; with the path in it, whatever a library in the block made of it.
    """
    make_directory(path.parent)
    writer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    temporary = path.with_name(f".{path.name}.{writer}{TEMPORARY_SUFFIX}")
    noting: Any = None

    try:
        with temporary.open("xb") as file:
            noting = _NotingFile(file)
            yield noting
            noting.sync()
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        fault = noting.fault if noting else None
        if fault is not None and isinstance(error, Exception):
            raise OSError(fault.errno, fault.strerror, str(path)) from error
        raise

    sync_directory(path.parent)


@contextlib.contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Let a library write files of its own in the block, into a new `folder`, which is gone if it cannot.

    The files may be read by all that the umask allows; safetensors would leave its own to the user alone.

    Raises:
        OSError: as the library raised it.
        WorkError: the library failed with an error of its own.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, Exception) and not isinstance(error, OSError):
            reason = str(error).strip().splitlines()[0]
            raise WorkError(f"cannot write {folder.parent}: {reason}") from error
        raise

    probe = folder / f".mode{TEMPORARY_SUFFIX}"
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


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
    with lock.open("wb") as file:
        mode = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
        fcntl.flock(file, mode)

        try:
            yield
        finally:
            # Closing alone would not release it while a forked child has the file.
            fcntl.flock(file, fcntl.LOCK_UN)
