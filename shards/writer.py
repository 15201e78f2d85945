"""Writing one shard: tar first, commit record last."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .anchors import Anchor
from .codec import encode, pixel_digest
from .commits import CommitRecord, read_commit, write_commit
from .durable import replacing
from .layout import layer_name, shard_path
from .plan import Plan, canonical_json

OWNER, GROUP, MODE, MTIME = "clsp", "clsp", 0o444, 0


@dataclass(frozen=True)
class Record:
    """An anchor and its candidates `(K, H, W, 3)` uint8."""

    anchor: Anchor
    candidates_KHWC: np.ndarray


class _HashingFile:
    """A binary file that counts and hashes what is written, so that the tar is read once less."""

    def __init__(self, file: BinaryIO):
        self._file, self.size, self._hash = file, 0, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self._hash.update(content)
        self.size += len(content)
        return self._file.write(content)

    def tell(self) -> int:
        return self.size

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def tar_sample(plan: Plan, record: Record) -> dict[str, Any]:
    """The members of a record: `{ending: bytes}` with its images and its `json`."""
    images = [record.anchor.image] if plan.shards.include_anchors else []
    images += list(record.candidates_KHWC)
    fields = plan.image_fields
    if len(images) != len(fields):
        raise ValueError(f"{record.anchor.key}: {len(images)} images, the plan has {len(fields)} per record")
    facts = {
        "key": record.anchor.key,
        "index": record.anchor.index,
        "label": record.anchor.label,
        "anchor": record.anchor.digest,
        "pixels": {field.split(".")[0]: pixel_digest(image) for field, image in zip(fields, images, strict=True)},
    }
    members = {field: encode(image, plan.shards.codec) for field, image in zip(fields, images, strict=True)}
    return {"__key__": record.anchor.key, **members, "json": canonical_json(facts)}


def write_shard(
    root: Path, plan: Plan, layer: int, shard: int, records: Iterable[Record], made: Callable[[], Mapping[str, Any]]
) -> CommitRecord:
    """Write a shard of `records` (in anchor order, one at a time) and then its commit record.

    A record that another writer has committed meanwhile stays as it is: its bytes are the same.

    Args:
        made: gives the facts of the run, asked for when the tar is finished.

    Raises:
        ValueError: the records are not exactly the shard's anchors in order. Nothing is committed.
    """
    from webdataset.writer import TarWriter  # imports torch where it is installed, so not at the top

    expected = list(plan.shard_range(shard))
    written = []
    with replacing(shard_path(root, layer, shard)) as file:
        hashing: Any = _HashingFile(file)  # has the two methods that a tar writer needs
        with TarWriter(hashing, encoder=False, user=OWNER, group=GROUP, mode=MODE, mtime=MTIME) as tar:
            for record in records:
                tar.write(tar_sample(plan, record))
                written.append(record.anchor.index)
        if written != expected:
            raise ValueError(f"shard {shard}: wrote anchors {written[:3]}…, the plan has {expected[:3]}…")
    existing = read_commit(root, plan, layer, shard)
    if existing is not None:
        return existing
    commit = CommitRecord(
        plan=plan.digest,
        layer=layer_name(layer),
        shard=shard,
        records=len(written),
        bytes=hashing.size,
        sha256=hashing.sha256,
        made=dict(made()),
    )
    write_commit(root, layer, commit)
    return commit
