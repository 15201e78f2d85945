"""Write one shard: tar first, commit record last."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from ...core import WorkError, canonical_json, pixel_digest, replacing
from ..sources.images import Anchor
from .codec import decode, encode
from .commits import CommitRecord, read_commit, write_commit
from .layout import layer_name, shard_path
from .plan import Plan
from .tar import ShardTar


@dataclass(frozen=True)
class Record:
    """Holds an anchor and its candidates `(K, H, W, 3)` uint8.

    >>> from clsp.shards import AnchorsConfig, ImageSource
    >>> anchor = ImageSource(AnchorsConfig(path="digits"))[0]
    >>> record = Record(anchor, np.stack([anchor.image, anchor.image[:, ::-1]]))
    >>> record.candidates_KHWC.shape
    (2, 8, 8, 3)
    """

    anchor: Anchor
    candidates_KHWC: np.ndarray


@dataclass(frozen=True)
class EncodedRecord:
    """Holds a record of encoded images: `contents` and their `pixels` digests in the order of the plan's fields."""

    key: str
    index: int
    label: int | None
    anchor: str
    contents: list[bytes]
    pixels: list[str]


def encode_record(plan: Plan, record: Record) -> EncodedRecord:
    """Encode the images of a record with the plan's codec; the digests are of the pixels that readers will see."""
    anchor = record.anchor
    images = [anchor.image] if plan.shards.include_anchors else []
    images += list(record.candidates_KHWC)

    contents = [encode(image, plan.shards.codec) for image in images]
    if not plan.codec.is_lossless:
        size = plan.source.size
        images = [decode(content, plan.shards.codec, size) for content in contents]

    pixels = [pixel_digest(image) for image in images]
    return EncodedRecord(anchor.key, anchor.index, anchor.label, anchor.digest, contents, pixels)


def _members(plan: Plan, record: EncodedRecord) -> dict[str, bytes]:
    """Return the members of a record by their endings."""
    fields = plan.image_fields
    if len(record.contents) != len(fields):
        raise ValueError(
            f"{record.key}: {len(record.contents)} images, the plan has {len(fields)} per record"
        )

    members = {}
    pixels = {}
    for field, content, digest in zip(fields, record.contents, record.pixels, strict=True):
        members[field] = content
        pixels[field.split(".")[0]] = digest

    facts = {
        "key": record.key,
        "index": record.index,
        "label": record.label,
        "anchor": record.anchor,
        "pixels": pixels,
    }
    members["json"] = canonical_json(facts)

    return members


class RecordTar:
    """Writes the records of one shard as its tar to an open file; a context manager.

    Add every record, in anchor order, then finish.
    """

    def __init__(self, file: BinaryIO, plan: Plan, shard: int):
        self.plan = plan
        self.shard = shard
        self._tar = ShardTar(file)
        self._indices: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._tar.close()

    def add(self, record: Record | EncodedRecord) -> None:
        """Write one record, encoding its images where they are not yet.

        Raises:
            ValueError: it has not as many images as the plan says.
        """
        encoded = encode_record(self.plan, record) if isinstance(record, Record) else record
        self._tar.add(encoded.key, _members(self.plan, encoded))
        self._indices.append(encoded.index)

    def finish(self) -> ShardTar:
        """End the archive and return what was counted and hashed.

        Raises:
            ValueError: the records are not exactly the shard's anchors in order.
        """
        self._tar.close()
        positions = self.plan.shard_range(self.shard)
        is_complete = len(self._indices) == len(positions)
        # The source indices of a selection are known to the anchors alone; they ascend in any case.
        is_selection = self.plan.selection is not None
        expected = sorted(set(self._indices)) if is_selection else list(positions)
        if not is_complete or self._indices != expected:
            raise ValueError(
                f"shard {self.shard}: wrote anchors {self._indices[:3]}… ({len(self._indices)} records), the plan has "
                f"{positions} ({len(positions)} records)"
            )

        return self._tar


class ShardWriter:
    """Writes one shard of a set: its tar, then the commit record that makes it count; a context manager.

    Add every record, in anchor order, then commit. Where an exception comes in between, nothing is left behind.

    >>> import tempfile
    >>> from clsp.shards import AnchorsConfig, DiffusionPlan, ImageSource, ShardsConfig, write_plan
    >>> from clsp.shards.format.plan import source_plan
    >>> anchors = ImageSource(AnchorsConfig(path="digits", limit=4))
    >>> plan = Plan(
    ...     source=source_plan(anchors),
    ...     diffusion=DiffusionPlan(origin="none", digest=""),
    ...     sampler={},
    ...     shards=ShardsConfig(candidates=1, records=4),
    ... )
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_plan(Path(folder), plan)
    ...     with ShardWriter(Path(folder), plan, layer=0, shard=0) as writer:
    ...         for anchor in anchors:
    ...             writer.add(Record(anchor, candidates_KHWC=anchor.image[None]))
    ...         commit = writer.commit({"by": "an example"})
    >>> commit.records
    4
    """

    def __init__(self, root: Path, plan: Plan, layer: int, shard: int):
        self.root = root
        self.plan = plan
        self.layer = layer
        self.shard = shard
        self._is_committed = False

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(replacing(shard_path(self.root, self.layer, self.shard)))
            self._tar = stack.enter_context(RecordTar(file, self.plan, self.shard))
            self._open = stack.pop_all()

        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if kind is not None or self._is_committed:
            self._open.__exit__(kind, error, traceback)
            return

        with self._open:
            raise ValueError(f"shard {self.shard}: not committed, so its records are dropped")

    def add(self, record: Record | EncodedRecord) -> None:
        """Write one record.

        Raises:
            ValueError: it has not as many images as the plan says.
        """
        self._tar.add(record)

    def commit(self, made: Mapping[str, Any]) -> CommitRecord:
        """Give the tar its name, then write its commit record and return it.

        A shard that another writer has committed meanwhile stays as it is, if its bytes are the same.

        Args:
            made: the facts of the run, kept in the record.

        Raises:
            ValueError: the records are not exactly the shard's anchors in order. Nothing is committed.
            WorkError: the shard is committed already, with other bytes. These stay.
        """
        written = self._tar.finish()

        # Equal plans give equal bytes; what is committed is never replaced by others.
        existing = read_commit(self.root, self.plan, self.layer, self.shard)
        if existing is not None and existing.sha256 != written.sha256:
            raise WorkError(
                f"{shard_path(self.root, self.layer, self.shard)} is committed with other bytes (sha256 "
                f"{existing.sha256[:16]}…, these records give {written.sha256[:16]}…); it stays as it is"
            )

        self._open.close()
        self._is_committed = True
        if existing is not None:
            return existing

        commit = CommitRecord(
            plan=self.plan.digest,
            layer=layer_name(self.layer),
            shard=self.shard,
            records=len(self.plan.shard_range(self.shard)),
            bytes=written.size,
            sha256=written.sha256,
            made=dict(made),
        )
        write_commit(self.root, self.layer, commit)

        return commit


def write_shard(
    root: Path,
    plan: Plan,
    layer: int,
    shard: int,
    records: Iterable[Record | EncodedRecord],
    made: Callable[[], Mapping[str, Any]],
) -> CommitRecord:
    """Write a shard of records that are at hand, as `ShardWriter` does.

    Args:
        made: gives the facts of the run, asked for when the last record is written.

    Raises:
        ValueError: the records are not exactly the shard's anchors in order. Nothing is committed.
    """
    with ShardWriter(root, plan, layer, shard) as writer:
        for record in records:
            writer.add(record)

        return writer.commit(made())
