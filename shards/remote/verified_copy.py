"""Copy files that land only when their bytes are those of the manifest, and try again what failed in passing."""

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fsspec.callbacks import Callback

from ...core import DISK_FULL, InputError, StopRequested, WorkError, replacing, sha256_file
from ..format.layout import MANIFEST, PLAN
from ..format.manifest import FileEntry, Manifest, parse_manifest
from ..format.metadata import MAX_JSON_BYTES
from .filesystem import Remote

ATTEMPTS = 4
BACKOFF = 0.5
BACKENDS = {
    "adlfs",
    "aiobotocore",
    "aiohttp",
    "azure",
    "botocore",
    "gcsfs",
    "google",
    "httpx",
    "requests",
    "s3fs",
}
"""Libraries whose own exceptions, not all of them OSErrors, mean that a transfer failed."""

PERMANENT = (NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)
Result = TypeVar("Result")


class DamagedError(OSError):
    """Reports a file that arrived with other bytes than its manifest has."""


def receive(
    source: Remote, name: str, entry: FileEntry, path: Path, stop: threading.Event | None = None
) -> None:
    """Copy a file to `path`, which takes its name only once size and SHA-256 are those of `entry`."""
    digest = hashlib.sha256()
    size = 0
    with (
        replacing(path) as file,
        contextlib.closing(source.chunks(name, max(entry.bytes, 1))) as chunks,
    ):
        for chunk in chunks:
            check_stop(stop)
            size += len(chunk)
            if size > entry.bytes:  # checked before writing, so that no answer can fill the disk
                raise DamagedError(f"more than the {entry.bytes} bytes of the manifest")
            digest.update(chunk)
            file.write(chunk)

        if size != entry.bytes or digest.hexdigest() != entry.sha256:
            raise DamagedError(
                f"{size} bytes of SHA-256 {digest.hexdigest()}, the manifest has {entry.bytes} bytes of {entry.sha256}"
            )


def send(
    path: Path, target: Remote, name: str, entry: FileEntry, stop: threading.Event | None = None
) -> None:
    """Upload a file and read it back; what does not agree with `entry` is removed again."""
    if path.stat().st_size != entry.bytes or sha256_file(path) != entry.sha256:
        raise WorkError(
            f"{path}: its bytes are not those of the manifest; run: clsp shards verify {path.parent} --deep"
        )

    # The file system's own upload, not a writer: a writer that fails half-way would publish what it has.
    target.fs.put_file(str(path), target.at(name), callback=_Stoppable(stop))
    check_stop(stop)
    if not target.holds(name, entry):
        with contextlib.suppress(Exception):
            target.fs.rm_file(target.at(name))
        raise DamagedError("read back with other bytes than those sent")


def retrying(work: Callable[[], Result], where: str, stop: threading.Event | None = None) -> Result:
    """Return the result of `work`, which may fail up to three times for a reason that can pass.

    Raises:
        InputError: access was denied, or there are no credentials.
        WorkError: it failed four times; names the file.
    """
    for attempt in range(1, ATTEMPTS + 1):
        check_stop(stop)
        try:
            return work()
        except Exception as error:
            _raise_if_lasting(error, where)
            if attempt == ATTEMPTS:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise WorkError(
                    f"{where}: {reason}; tried {ATTEMPTS} times, run again to go on"
                ) from error

        pause = BACKOFF * 2 ** (attempt - 1)
        stop.wait(pause) if stop else time.sleep(pause)

    raise AssertionError


def check_stop(stop: threading.Event | None) -> None:
    """Leave the work of this thread if the command is ending."""
    if stop is not None and stop.is_set():
        raise StopRequested


def _raise_if_lasting(error: Exception, where: str) -> None:
    """Raise what another attempt cannot mend: local faults and bugs as they are, refusals as bad input."""
    # A PermissionError without a local file comes from the server.
    is_refused = isinstance(error, PermissionError) and not error.filename
    if is_refused or type(error).__name__ == "NoCredentialsError":
        raise InputError(
            f"{where}: access denied ({error}); give credentials in the environment"
        ) from error

    disk_is_full = isinstance(error, OSError) and error.filename and error.errno in DISK_FULL
    library = type(error).__module__.split(".")[0]
    is_known = isinstance(error, (OSError, EOFError)) or library in BACKENDS
    if not is_known or isinstance(error, PERMANENT) or disk_is_full:
        raise error


class _Stoppable(Callback):
    """Ends an upload at its next part; raising inside it lets the file system abort what it began."""

    def __init__(self, stop: threading.Event | None):
        super().__init__()
        self.stop = stop

    def relative_update(self, inc: int = 1) -> None:
        check_stop(self.stop)


def fetch_manifest(source: Remote, expect: str | None = None) -> tuple[Manifest, bytes]:
    """Fetch the manifest of the sealed set at `source`; return it and its bytes.

    Raises:
        InputError: no sealed set of a known schema version there, or its set ID is not `expect`.
        WorkError: it cannot be read.
    """
    where = source.where(MANIFEST)
    content = retrying(lambda: source.read(MANIFEST, MAX_JSON_BYTES), where)
    if content is None:
        if retrying(lambda: source.size(PLAN), source.where(PLAN)) is not None:
            raise InputError(
                f"{source.url} is not finished (no {MANIFEST}); run again the command that writes it"
            )
        raise InputError(
            f"{where} does not exist; expected a sealed shard set (clsp shards push copies one there)"
        )

    manifest = parse_manifest(content, where)
    if hashlib.sha256(content).hexdigest() != manifest.set_id:
        raise InputError(
            f"{where} is not in the form that clsp writes, so it has no set ID; copy the set again"
        )
    if PLAN not in manifest.files or manifest.files[PLAN].sha256 != manifest.plan:
        raise InputError(f"{where} does not seal its {PLAN}; copy the set again")
    if expect is not None and manifest.set_id != expect:
        raise InputError(
            f"{source.url} has the set ID {manifest.set_id}, expected {expect}; check the address"
        )

    return manifest, content
