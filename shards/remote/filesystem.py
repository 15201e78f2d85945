"""Read the files of a folder at an fsspec URL or a local path: names, sizes, bounded reads."""

import contextlib
import hashlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from ...core import InputError
from ..format.manifest import FileEntry

CHUNK = 1 << 20
BLOCK = 8 << 20
"""Bytes that a ranged reader asks for at once; fsspec's own 50 MiB times the workers would fill memory."""
HTTP_PROTOCOLS = {"http", "https"}


class Remote:
    """Opens the folder at `url`, anew in each process, so it can be pickled and survives a fork.

    Raises:
        InputError: no such protocol, or its library is missing.
    """

    def __init__(self, url: str | Path):
        self.url = str(url) if len(str(url)) == 1 else str(url).rstrip("/")
        self._fs, self._base = _connect(self.url)
        self._pid = os.getpid()
        self.local = isinstance(self._fs, LocalFileSystem)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_fs": None, "_pid": 0}

    @property
    def fs(self) -> Any:
        """Return the file system of this process."""
        if self._pid != os.getpid():  # an event loop does not survive a fork
            self._fs = _connect(self.url)[0]
            self._pid = os.getpid()
        return self._fs

    @property
    def root(self) -> Path:
        """Return the path of a local folder."""
        return Path(self._base)

    def where(self, name: str) -> str:
        """Return the full name of a file for messages."""
        return f"{self.url}/{name}"

    def at(self, name: str) -> str:
        """Return the full name of a file for the file system."""
        return f"{self._base}/{name}"

    def chunks(self, name: str, size: int = CHUNK) -> Generator[bytes, None, None]:
        """Yield the bytes of a file, in order."""
        protocol = self.fs.protocol
        protocols = {protocol} if isinstance(protocol, str) else set(protocol)
        options: dict[str, int] = {}
        if protocols & HTTP_PROTOCOLS:
            # A plain server may ignore ranges: one request streams the file, and its size need not be asked for.
            options = {"block_size": 0, "size": size}
        elif not self.local:
            options = {"block_size": BLOCK}

        with self.fs.open(self.at(name), "rb", **options) as file:
            chunk = file.read(CHUNK)
            while chunk:
                yield chunk
                chunk = file.read(CHUNK)

    def read(self, name: str, limit: int) -> bytes | None:
        """Read a small file, or None where there is none; raise InputError if it is larger than `limit` bytes."""
        content = b""
        try:
            with contextlib.closing(self.chunks(name)) as chunks:
                for chunk in chunks:
                    content += chunk
                    if len(content) > limit:
                        raise InputError(f"{self.where(name)}: more than {limit} bytes; not read")
        except (FileNotFoundError, NotADirectoryError):
            return None

        return content

    def size(self, name: str) -> int | None:
        """Return the size of a file, or None where there is none."""
        try:
            return self.fs.info(self.at(name))["size"]
        except (FileNotFoundError, NotADirectoryError):
            return None

    def holds(self, name: str, entry: FileEntry) -> bool:
        """Return True if the file is there with the size and, read back, the SHA-256 of `entry`."""
        if self.size(name) != entry.bytes:
            return False

        digest = hashlib.sha256()
        for chunk in self.chunks(name):
            digest.update(chunk)

        return digest.hexdigest() == entry.sha256

    def is_empty(self) -> bool:
        """Return True if nothing is there but hidden files."""
        try:
            paths = [path.rstrip("/") for path in self.fs.ls(self._base, detail=False)]
        except FileNotFoundError:
            return True

        for path in paths:
            is_itself = path == self._base.rstrip("/")
            is_hidden = path.rsplit("/", 1)[-1].startswith(".")
            if not is_itself and not is_hidden:
                return False

        return True


def _connect(url: str) -> tuple[Any, str]:
    protocol = url.split("://")[0] if "://" in url else "file"
    options: dict[str, Any] = {"use_listings_cache": False}  # other processes write here too
    if protocol in HTTP_PROTOCOLS:
        options["client_kwargs"] = {"timeout": _http_timeout()}

    try:
        return fsspec.core.url_to_fs(url, **options)
    except ImportError as error:
        needed = getattr(error.__cause__, "name", None) or str(error)
        raise InputError(
            f"{protocol}:// needs {needed}; run: pip install 'clsp[remote]'"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{url}: {error}; expected a folder or a URL such as s3://bucket/name"
        ) from error


def _http_timeout() -> Any:
    """Limit the time of silence, not, as aiohttp does, that of a whole file."""
    try:
        from aiohttp import ClientTimeout
    except ImportError as error:
        raise InputError("http:// needs aiohttp; run: pip install 'clsp[remote]'") from error
    return ClientTimeout(total=None, sock_connect=30, sock_read=60)
