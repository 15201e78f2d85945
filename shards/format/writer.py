"""Writing one shard: tar first, commit record last."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...core import canonical_json, pixel_digest, replacing
from ..sources.images import Anchor
from .codec import encode
from .commits import CommitRecord, read_commit, write_commit
from .layout import layer_name, shard_path
from .plan import Plan
from .tar import ShardTar


@dataclass(frozen=True)
class Record:
    """An anchor and its candidates `(K, H, W, 3)` uint8."""

    anchor: Anchor
    candidates_KHWC: np.ndarray


@dataclass(frozen=True)
class EncodedRecord:
    """A record whose images are encoded: `contents` and their `pixels` digests in the order of the plan's fields."""

    key: str
    index: int
    label: int | None
    anchor: str
    contents: list[bytes]
    pixels: list[str]


def encode_record(plan: Plan, record: Record) -> EncodedRecord:
    """Encode the images of a record with the plan's codec."""
    images = [record.anchor.image] if plan.shards.include_anchors else []
    images += list(record.candidates_KHWC)
    anchor = record.anchor
    contents = [encode(image, plan.shards.codec) for image in images]
    pixels = [pixel_digest(image) for image in images]
    return EncodedRecord(anchor.key, anchor.index, anchor.label, anchor.digest, contents, pixels)


def _members(plan: Plan, record: EncodedRecord) -> dict[str, bytes]:
    """Return the members of a record by their endings."""
    fields = plan.image_fields
    if len(record.contents) != len(fields):
        raise ValueError(
            f"{record.key}: {len(record.contents)} images, the plan has {len(fields)} per record"
        )

    facts = {
        "key": record.key,
        "index": record.index,
        "label": record.label,
        "anchor": record.anchor,
        "pixels": {
            field.split(".")[0]: digest for field, digest in zip(fields, record.pixels, strict=True)
        },
    }
    return {**dict(zip(fields, record.contents, strict=True)), "json": canonical_json(facts)}


def write_tar(
    file: BinaryIO, plan: Plan, shard: int, records: Iterable[Record | EncodedRecord]
) -> ShardTar:
    """Write the tar of a shard to an open file; returns what was counted and hashed.

    Raises:
        ValueError: the records are not exactly the shard's anchors in order.
    """
    written = []
    with ShardTar(file) as tar:
        for record in records:
            encoded = encode_record(plan, record) if isinstance(record, Record) else record
            tar.add(encoded.key, _members(plan, encoded))
            written.append(encoded.index)

    positions = plan.shard_range(shard)
    if len(written) != len(positions) or (plan.selection is None and written != list(positions)):
        raise ValueError(f"shard {shard}: wrote anchors {written[:3]}…, the plan has {positions}")

    return tar


def write_shard(
    root: Path,
    plan: Plan,
    layer: int,
    shard: int,
    records: Iterable[Record | EncodedRecord],
    made: Callable[[], Mapping[str, Any]],
) -> CommitRecord:
    """Write a shard of `records` (in anchor order, one at a time) and then its commit record.

    A record that another writer has committed meanwhile stays as it is: its bytes are the same.

    Args:
        made: gives the facts of the run, asked for when the tar is finished.

    Raises:
        ValueError: the records are not exactly the shard's anchors in order. Nothing is committed.
    """
    with replacing(shard_path(root, layer, shard)) as file:
        written = write_tar(file, plan, shard, records)

    existing = read_commit(root, plan, layer, shard)
    if existing is not None:
        return existing

    commit = CommitRecord(
        plan=plan.digest,
        layer=layer_name(layer),
        shard=shard,
        records=len(plan.shard_range(shard)),
        bytes=written.size,
        sha256=written.sha256,
        made=dict(made()),
    )
    write_commit(root, layer, commit)

    return commit
