"""Check a set against its seal: quickly by presence, size and counts, or deeply by digests and pixels."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ...core import InputError, Report, WorkError, pixel_digest, sha256_file
from ..format.codec import decode
from ..format.commits import read_commit
from ..format.index import read_tar_rows
from ..format.layout import (
    CARD,
    CROISSANT,
    MANIFEST,
    PLAN,
    commit_path,
    layer_files,
    layer_name,
    plan_path,
    relative,
    shard_path,
)
from ..format.manifest import FileEntry, Manifest, read_manifest
from ..format.plan import indices_digest
from ..reading.scores import check_scores
from ..reading.shard_set import LayerReader, ShardSet


class FaultKind(Enum):
    """Names the ways in which a file can disagree with the manifest."""

    OUTSIDE = "leads out of the set's folder"
    MISSING = "missing"
    SIZE = "another size"
    BYTES = "other bytes"


@dataclass(frozen=True)
class Fault:
    """Describes a disagreement of one file with the manifest; decisions go by its kind, its message is for people."""

    file: str
    kind: FaultKind
    message: str

    def __str__(self) -> str:
        return f"{self.file}: {self.message}"


def verify_set(
    root: Path, deep: bool = False, expect: str | None = None, report: Report | None = None
) -> list[str]:
    """Return the faults of the set at `root`, one line each; an empty list means that it is sound.

    A layer that is still being added (its plan is there, the manifest does not have it yet) is left out.

    Args:
        deep: also check every file's SHA-256, the tars' members against the index, and that every image decodes to
            the pixels whose digest was recorded.
        expect: the set ID that the manifest must have; it pins the seal itself.
        report: called with (files done, files in all).

    Raises:
        InputError: no sealed set of a known schema version there.
    """
    manifest = read_manifest(root)
    actual = hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest()
    faults = []

    if actual != manifest.set_id or (expect and actual != expect):
        faults.append(
            f"{MANIFEST}: set ID {actual}, expected {expect or manifest.set_id}; fetch the set again"
        )

    for done, (name, entry) in enumerate(sorted(manifest.files.items()), start=1):
        fault = file_fault(root, name, entry, deep)
        if fault is not None:
            faults.append(str(fault))

        if report:
            report(done, len(manifest.files))

    faults += _undeclared(root, manifest)
    return faults or _content_faults(root, manifest, deep)


def file_fault(root: Path, name: str, entry: FileEntry, deep: bool) -> Fault | None:
    """Compare one file with its entry in the manifest and return the first disagreement, if there is one."""
    path = root / name
    try:
        inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # a loop of links
        inside = False

    if not inside:
        message = "leaves the set's folder; the manifest is not trustworthy"
        return Fault(name, FaultKind.OUTSIDE, message)

    if not path.is_file():
        message = f"missing, the manifest has {entry.bytes} bytes"
        return Fault(name, FaultKind.MISSING, message)

    size = path.stat().st_size
    if size != entry.bytes:
        return Fault(name, FaultKind.SIZE, f"{size} bytes, the manifest has {entry.bytes}")

    if deep and sha256_file(path) != entry.sha256:
        message = "its bytes are not those of the manifest (SHA-256 differs)"
        return Fault(name, FaultKind.BYTES, message)

    return None


def _undeclared(root: Path, manifest: Manifest) -> list[str]:
    """Return a line for every file in the places of a set that the manifest does not know."""
    found: list[Path] = []
    for pattern in ("layer-*/*", "commits/*/*", "*.parquet", "layer-*.json", "scores/*"):
        found += [path for path in root.glob(pattern) if not path.name.startswith(".")]

    # The layer that is being added is no part of the set yet.
    growing = len(manifest.layers)
    if plan_path(root, growing).exists():
        name = layer_name(growing)
        found = [path for path in found if name not in (path.parent.name, path.stem)]

    faults = []
    if PLAN not in manifest.files:
        faults.append(f"{PLAN}: not in the manifest; fetch the set again")

    for name in sorted(relative(root, path) for path in found):
        if name not in manifest.files:
            faults.append(f"{name}: not in the manifest; remove it")

    return faults


def _content_faults(root: Path, manifest: Manifest, deep: bool) -> list[str]:
    try:
        shards = ShardSet(root)
        faults = []
        for layer in shards.layers:
            faults += _layer_faults(shards, manifest, layer)

        for name in sorted(manifest.files):
            if name.startswith("scores/"):
                check_scores(root / name, shards)

        if deep and not faults:
            faults += _source_faults(shards)
            for layer in shards.layers:
                for shard in range(layer.plan.shard_count):
                    faults += _shard_faults(shards, layer, shard)
    except (WorkError, InputError) as error:
        return [str(error)]

    return faults


def _layer_faults(shards: ShardSet, manifest: Manifest, layer: LayerReader) -> Iterator[str]:
    root = shards.root
    count = layer.plan.shard_count
    required = {CARD, CROISSANT}
    required.update(relative(root, path) for path in layer_files(root, layer.number, count))

    for name in sorted(required - set(manifest.files)):
        yield f"{name}: not in the manifest, expected by the plan"

    for shard in range(count):
        commit = read_commit(root, layer.plan, layer.number, shard)
        entry = manifest.files.get(relative(root, shard_path(root, layer.number, shard)))
        agrees = (
            commit is not None
            and entry is not None
            and (commit.bytes, commit.sha256) == (entry.bytes, entry.sha256)
        )
        if not agrees:
            name = relative(root, commit_path(root, layer.number, shard))
            yield f"{name}: does not agree with plan and manifest"


def _source_faults(shards: ShardSet) -> Iterator[str]:
    """Compare the digest of all anchors, or of the indices of those that were chosen, with the one in the plan."""
    selection = shards.plan.selection
    if selection:
        found = indices_digest(shards.source_indices())
        expected = selection.digest
    else:
        identities = hashlib.blake2b(digest_size=16)
        for shard in range(shards.plan.shard_count):
            for row in shards.layers[0].index.table(shard):
                identities.update(row["anchor"])
        found = identities.hexdigest()
        expected = shards.plan.source.digest

    if found != expected:
        yield f"layer-000.parquet: its anchors have the digest {found}, the plan {expected}"


def _shard_faults(shards: ShardSet, layer: LayerReader, shard: int) -> Iterator[str]:
    path = shard_path(shards.root, layer.number, shard)
    name = relative(shards.root, path)
    rows = read_tar_rows(path, layer.plan, shard)
    anchors = shards.layers[0].index.table(shard)

    for position, row, indexed, anchor in zip(
        layer.plan.shard_range(shard), rows, layer.index.table(shard), anchors, strict=True
    ):
        same = all(row[field] == anchor[field] for field in ("key", "index", "label", "anchor"))
        if row != indexed or not same:
            yield f"{name}: record {row['key']} does not agree with the index"
        else:
            yield from _record_faults(shards, layer, position, row, name)


def _record_faults(
    shards: ShardSet, layer: LayerReader, position: int, row: dict[str, Any], name: str
) -> Iterator[str]:
    for member, field in enumerate(layer.plan.image_fields):
        try:
            image = decode(
                shards.member_bytes(layer, position, member), layer.plan.shards.codec, shards.size
            )
            if bytes.fromhex(pixel_digest(image)) != row["pixels"][member]:
                yield f"{name}: {row['key']}.{field}: pixels differ from the recorded digest"
        except WorkError as error:
            yield f"{name}: {row['key']}.{field}: {error}"
