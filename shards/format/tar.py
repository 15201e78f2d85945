"""Write a shard's tar: webdataset's `TarWriter` with a fixed owner and time, so that equal records give equal bytes."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from typing import Any, BinaryIO

OWNER, GROUP, MODE = "clsp", "clsp", 0o444


class CountedFile(io.RawIOBase):
    """Passes what is written on to an open file, counting and hashing it, so that the tar is read once less."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._hash = hashlib.sha256()
        self.size = 0

    def writable(self) -> bool:
        """Return True: it is there to be written to."""
        return True

    def write(self, content) -> int:
        """Write bytes and return their number."""
        self._hash.update(content)
        self._file.write(content)
        self.size += len(content)
        return len(content)

    @property
    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of what was written."""
        return self._hash.hexdigest()


class ShardTar:
    """Writes records to an open file as a tar (POSIX ustar); a context manager that ends the archive.

    `size` and `sha256` are those of the whole tar once it is closed.
    """

    def __init__(self, file: BinaryIO):
        # It imports torch where that is installed, so only what writes imports it.
        from webdataset.writer import TarWriter

        self._counted = CountedFile(file)
        counted: Any = self._counted
        self._writer = TarWriter(
            counted, encoder=False, compress=False, user=OWNER, group=GROUP, mode=MODE, mtime=0
        )
        # TarWriter drops the format that it is given, and tarfile's encoding is the locale's.
        self._writer.tarstream.format = tarfile.USTAR_FORMAT
        self._writer.tarstream.encoding = "utf-8"

    def __enter__(self) -> "ShardTar":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add a record: members `{key}.{ending}`, in the endings' alphabetical order.

        Raises:
            ValueError: a member's name has more than 100 bytes.
        """
        self._writer.write({"__key__": key, **members})

    def close(self) -> None:
        """End the archive; the file stays open."""
        self._writer.close()

    @property
    def size(self) -> int:
        """Return the number of bytes written."""
        return self._counted.size

    @property
    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of what was written."""
        return self._counted.sha256
