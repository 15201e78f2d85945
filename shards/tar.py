"""The tar of a shard, byte by byte: fixed owner and time, so that equal members give equal bytes.

POSIX ustar, as `tarfile` and `webdataset.TarWriter` write it for such members, but without their 40 µs per member: the
header of a member differs in its name, its size and its checksum alone.
"""

import hashlib
import tarfile
from typing import BinaryIO

OWNER, GROUP, MODE = "clsp", "clsp", 0o444
NAME_BYTES = 100


def _template() -> bytes:
    member = tarfile.TarInfo()
    member.uname, member.gname, member.mode, member.mtime = OWNER, GROUP, MODE, 0
    return member.tobuf(tarfile.USTAR_FORMAT)


TEMPLATE = _template()
OWNERS, TIME, REST = TEMPLATE[100:124], TEMPLATE[136:148], TEMPLATE[156:]
BASE_SUM = sum(OWNERS + TIME + REST) + 8 * ord(" ")  # the checksum counts its own field as blanks


def member_header(name: str, size: int) -> bytes:
    """The header block of a plain file, 512 bytes.

    Raises:
        ValueError: the name is longer than 100 bytes.
    """
    encoded, digits = name.encode(), b"%011o\0" % size
    if len(encoded) > NAME_BYTES:
        raise ValueError(f"{name}: {len(encoded)} bytes, a member's name has at most {NAME_BYTES}")
    checksum = b"%06o\0 " % (BASE_SUM + sum(encoded) + sum(digits))
    return encoded.ljust(NAME_BYTES, b"\0") + OWNERS + digits + TIME + checksum + REST


class TarFile:
    """Writes members to an open file, counting and hashing what is written, so that the tar is read once less."""

    def __init__(self, file: BinaryIO):
        self._file, self.size, self._hash = file, 0, hashlib.sha256()

    def add(self, name: str, content: bytes) -> None:
        """Add a member."""
        padding = bytes(-len(content) % tarfile.BLOCKSIZE)
        self._write(member_header(name, len(content)) + content + padding)

    def close(self) -> None:
        """Write the end of the archive: two empty blocks, and the record filled up."""
        end = self.size + 2 * tarfile.BLOCKSIZE
        self._write(bytes(end + -end % tarfile.RECORDSIZE - self.size))

    @property
    def sha256(self) -> str:
        """Hexadecimal digest of what was written."""
        return self._hash.hexdigest()

    def _write(self, content: bytes) -> None:
        self._hash.update(content)
        self._file.write(content)
        self.size += len(content)
