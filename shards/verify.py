"""Checking a set against its seal: quickly by presence and size, or deeply by digests and pixels."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from .codec import decode, pixel_digest
from .durable import sha256_file
from .errors import InputError, WorkError
from .index import read_tar_rows
from .layout import CARD, MANIFEST, PLAN, commit_path, index_path, shard_path
from .plan import Plan
from .reader import ShardSet
from .seal import Manifest, read_manifest

Report = Callable[[int, int], None]


def verify_set(root: Path, deep: bool = False, expect: str | None = None, report: Report | None = None) -> list[str]:
    """The faults of the set at `root`, one line each; an empty list means that it is sound.

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
        faults.append(f"{MANIFEST}: set ID {actual}, expected {expect or manifest.set_id}; fetch the set again")
    for done, (name, entry) in enumerate(sorted(manifest.files.items()), start=1):
        faults += _file_faults(root, name, entry.bytes, entry.sha256, deep)
        if report:
            report(done, len(manifest.files))
    faults += _undeclared(root, manifest)
    if faults:
        return faults
    return _content_faults(root, manifest, deep)


def _file_faults(root: Path, name: str, size: int, sha256: str, deep: bool) -> Iterator[str]:
    path = root / name
    if not path.resolve().is_relative_to(root.resolve()):
        yield f"{name}: leaves the set's folder; the manifest is not trustworthy"
    elif not path.is_file():
        yield f"{name}: missing, the manifest has {size} bytes"
    elif path.stat().st_size != size:
        yield f"{name}: {path.stat().st_size} bytes, the manifest has {size}"
    elif deep and sha256_file(path) != sha256:
        yield f"{name}: its bytes are not those of the manifest (SHA-256 differs)"


def _undeclared(root: Path, manifest: Manifest) -> list[str]:
    """Tars, commit records and indexes that the manifest does not know."""
    found = [*root.glob("layer-*/*"), *root.glob("commits/*/*"), *root.glob("*.parquet")]
    names = sorted(path.relative_to(root).as_posix() for path in found if path.name[0] != ".")
    return [f"{name}: not in the manifest; remove it" for name in names if name not in manifest.files]


def _content_faults(root: Path, manifest: Manifest, deep: bool) -> list[str]:
    try:
        shards = ShardSet(root)
    except (WorkError, InputError) as error:
        return [str(error)]
    missing = sorted(required_files(root, shards.plan) - set(manifest.files))
    faults = [f"{name}: not in the manifest, expected by the plan" for name in missing]
    if deep and not faults:
        for shard in range(shards.plan.shard_count):
            faults += _shard_faults(shards, shard)
    return faults


def required_files(root: Path, plan: Plan) -> set[str]:
    """The files, relative to `root`, that a sealed set of this plan has."""
    paths = [root / PLAN, root / CARD, index_path(root, 0)]
    for shard in range(plan.shard_count):
        paths += [shard_path(root, 0, shard), commit_path(root, 0, shard)]
    return {path.relative_to(root).as_posix() for path in paths}


def _shard_faults(shards: ShardSet, shard: int) -> list[str]:
    path = shard_path(shards.root, 0, shard)
    name = path.relative_to(shards.root).as_posix()
    try:
        rows = read_tar_rows(path, shards.plan, shard)
    except WorkError as error:
        return [str(error)]
    faults = []
    for position, row in zip(shards.plan.shard_range(shard), rows, strict=True):
        if row["key"] != shards.key(position) or row["sizes"] != shards.index.sizes[position].tolist():
            faults.append(f"{name}: record {row['key']} does not agree with the index")
        else:
            faults += _record_faults(shards, position, name)
    return faults


def _record_faults(shards: ShardSet, position: int, name: str) -> Iterator[str]:
    digests = [value.hex() for value in shards.index.pixels[position].as_py()]
    with_anchor = shards.plan.shards.include_anchors
    contents = [shards.anchor_bytes(position)] if with_anchor else []
    contents += [shards.candidate_bytes(position, candidate) for candidate in range(shards.candidates)]
    for field, content, digest in zip(shards.plan.image_fields, contents, digests, strict=True):
        try:
            if pixel_digest(decode(content or b"", shards.plan.shards.codec, shards.size)) != digest:
                yield f"{name}: {shards.key(position)}.{field}: pixels differ from the recorded digest"
        except WorkError as error:
            yield f"{name}: {shards.key(position)}.{field}: {error}"
