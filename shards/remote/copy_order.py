"""List the files of a sealed set in the order in which they are copied, for every kind of destination."""

from collections.abc import Collection
from dataclasses import dataclass

from ..format.layout import DESCRIPTIONS, MANIFEST, PLAN, shard_of
from ..format.manifest import FileEntry, Manifest


@dataclass(frozen=True)
class CopyOrder:
    """Groups the files of a set, but for plan and manifest, in the order in which they are copied.

    The plan goes before them: it says whose the place is, so that an interrupted copy is recognised. The manifest
    goes after them: a place without it is an unfinished copy.
    """

    shards: list[tuple[str, str]]
    """Every tar with its commit record, which follows it."""

    rest: list[str]
    descriptions: list[str]


def files_to_copy(manifest: Manifest, content: bytes) -> dict[str, FileEntry]:
    """Return an entry for every file of a set: those of the manifest, and the manifest itself with its bytes."""
    own_entry = FileEntry(bytes=len(content), sha256=manifest.set_id)
    return {**manifest.files, MANIFEST: own_entry}


def copy_order(names: Collection[str]) -> CopyOrder:
    """Group the files of a set by when they are copied."""
    shards = []
    for record in sorted(names):
        tar = shard_of(record)
        if tar is not None and tar in names:
            shards.append((tar, record))

    descriptions = [name for name in DESCRIPTIONS if name in names]
    apart = {PLAN, MANIFEST, *descriptions}
    for tar, record in shards:
        apart |= {tar, record}

    rest = sorted(set(names) - apart)
    return CopyOrder(shards, rest, descriptions)
