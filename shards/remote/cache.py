"""Find the files of a set: in a local folder, or at a URL through a bounded cache on disk."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ...core import InputError, WorkError, local_path, locked, remove_temporaries, write_file
from ..format.layout import MANIFEST, parse_shard
from ..format.manifest import FileEntry, Manifest, read_manifest
from .filesystem import Remote
from .verified_copy import fetch_manifest, receive, retrying

CACHE_BYTES = 4 << 30
LOCKS = ".locks"
PIXELS = "pixels"
"""The folder of decoded pixels in a cache folder; the arrays have a bound of their own."""


class Store(Protocol):
    """Finds the files of one set by name.

    Attributes:
        location: where the set is, as the user gave it.
        root: the folder in which `path` finds or puts files.
        manifest: what the set is.
    """

    location: str
    root: Path
    manifest: Manifest

    def path(self, name: str) -> Path:
        """Return the local path of a file of the set."""
        ...


class LocalStore(Store):
    """Finds the files of a set in a local folder."""

    def __init__(self, root: Path):
        self.location = str(root)
        self.root = root
        self.manifest = read_manifest(root)

    def path(self, name: str) -> Path:
        """Return the path of a file, whether or not it exists."""
        return self.root / name


class RemoteStore(Store):
    """Fetches the files of a sealed set at a URL, each whole when it is first needed.

    Any number of processes may share a cache folder. A file gets its name there only when size and SHA-256 agree with
    the manifest, so what is found there later is trusted by its size.

    Args:
        cache: the cache folder, with a folder per set ID.
        cache_bytes: the tars of all sets in the cache stay within it; the least recently used are removed first.

    Raises:
        InputError: no sealed set there.
    """

    def __init__(self, location: str, cache: Path, cache_bytes: int = CACHE_BYTES):
        self.location = location
        self.cache = cache.absolute()
        self.cache_bytes = cache_bytes
        self._remote = Remote(location)
        self.manifest, content = fetch_manifest(self._remote)
        self.root = self.cache / self.manifest.set_id[:16]
        remove_temporaries(self.root)
        write_file(self.root / MANIFEST, content)

    def path(self, name: str) -> Path:
        """Return the path of a file, fetched if it is not in the cache.

        Another process may remove a tar before the caller opens it; then call again. A file once opened or mapped stays
        readable.

        Raises:
            WorkError: the set has no such file, or its bytes are not those of the manifest.
        """
        path = self.root / name
        if name == MANIFEST:
            return path

        entry = self.manifest.files.get(name)
        if entry is None:
            raise WorkError(
                f"{self.location} has no file {name}; run: clsp shards verify on the set"
            )

        if not _used(path, entry):
            with locked(self.root / LOCKS / name):
                if not _used(path, entry):  # another process may have fetched it meanwhile
                    self._fetch(name, entry, path)

        return path

    def _fetch(self, name: str, entry: FileEntry, path: Path) -> None:
        is_tar = parse_shard(name) is not None
        if is_tar:
            self._make_room(entry.bytes, path)
        retrying(lambda: receive(self._remote, name, entry, path), self._remote.where(name))
        if is_tar:
            self._make_room(0, path)  # others may have fetched at the same time

    def _make_room(self, needed: int, keep: Path) -> None:
        """Remove the least recently used tars until `needed` more bytes fit; `keep` stays."""
        with locked(self.cache / LOCKS / "evict"):
            tars = sorted(_tars(self.cache))
            total = needed + sum(size for _, size, _ in tars)
            for _, size, path in tars:
                if total > self.cache_bytes and path != keep:
                    path.unlink(missing_ok=True)
                    total -= size


def open_store(
    location: str | Path, cache: Path | None = None, cache_bytes: int = CACHE_BYTES
) -> Store:
    """Open the files of the set in a local folder, or at a URL.

    Args:
        cache: where files of a URL are kept; by default `$CLSP_CACHE`, else the user's cache folder.
        cache_bytes: how many bytes of tars are kept there.
    """
    location = local_path(str(location))
    if "://" not in location:
        return LocalStore(Path(location))

    remote = Remote(location)
    if remote.local:
        return LocalStore(remote.root)

    return RemoteStore(location, cache or cache_folder(), cache_bytes)


def cache_folder() -> Path:
    """Return `$CLSP_CACHE`, else `clsp` in the platform's cache folder.

    Raises:
        InputError: there is no such folder.
    """
    if "CLSP_CACHE" in os.environ:
        return Path(os.environ["CLSP_CACHE"])

    if "XDG_CACHE_HOME" in os.environ:
        return Path(os.environ["XDG_CACHE_HOME"]) / "clsp"

    try:
        return Path.home() / ".cache" / "clsp"
    except RuntimeError as error:
        raise InputError("the user has no home folder to cache a set in; set CLSP_CACHE") from error


def _used(path: Path, entry: FileEntry) -> bool:
    """Return True if the file is there; it then counts as used now."""
    try:
        if path.stat().st_size != entry.bytes:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _tars(cache: Path) -> Iterator[tuple[int, int, Path]]:
    for path in cache.glob("*/layer-*/shard-*.tar"):
        with contextlib.suppress(FileNotFoundError):  # another process is making room too
            status = path.stat()
            yield status.st_mtime_ns, status.st_size, path
