"""The seal of a finished set: index, card and manifest. Sealing twice gives the same bytes."""

import hashlib
from pathlib import Path

from pydantic import JsonValue, ValidationError

from .card import write_card
from .commits import committed_shards, read_commit
from .durable import remove_temporaries, sha256_file, write_file
from .errors import InputError
from .index import write_index
from .layout import CARD, MANIFEST, PLAN, commit_path, index_path, layer_name, shard_path
from .plan import SCHEMA_VERSION, Frozen, Plan, canonical_json, check_schema, first_fault, read_json


class FileEntry(Frozen):
    """Size and SHA-256 of a file of the set."""

    bytes: int
    sha256: str


class Layer(Frozen):
    """Candidates `first` … `first + candidates - 1` of every anchor."""

    name: str
    first: int
    candidates: int


class Manifest(Frozen):
    """`manifest.json`: what the set is and the digest of every file. Its SHA-256 is the set ID."""

    format: str
    schema_version: str
    plan: str
    provenance: dict[str, JsonValue]
    layers: list[Layer]
    files: dict[str, FileEntry]

    @property
    def set_id(self) -> str:
        """SHA-256 of the manifest's file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def to_bytes(self) -> bytes:
        """The bytes of `manifest.json`."""
        return canonical_json(self.model_dump(mode="json"))


def is_sealed(root: Path) -> bool:
    """True if the set at `root` has its manifest."""
    return (root / MANIFEST).exists()


def seal_if_complete(root: Path, plan: Plan) -> str | None:
    """Seal the set if every shard is committed and return its set ID, else None.

    Any process may call it at any time; there is nothing to wait for, since all of them write the same bytes.
    """
    if len(committed_shards(root, plan)) < plan.shard_count:
        return None
    if is_sealed(root):
        return read_manifest(root).set_id
    remove_temporaries(root)
    write_index(root, plan, 0)
    layers = [Layer(name=layer_name(0), first=0, candidates=plan.shards.candidates)]
    write_card(root, plan, [layer.name for layer in layers])
    manifest = Manifest(
        format=plan.format,
        schema_version=SCHEMA_VERSION,
        plan=plan.digest,
        provenance={
            "source": plan.source.model_dump(mode="json"),
            "diffusion": plan.diffusion.model_dump(mode="json"),
            "sampler": dict(plan.sampler),
        },
        layers=layers,
        files=_file_entries(root, plan),
    )
    write_file(root / MANIFEST, manifest.to_bytes())
    return manifest.set_id


def _file_entries(root: Path, plan: Plan) -> dict[str, FileEntry]:
    entries = {}
    for shard in range(plan.shard_count):
        commit = read_commit(root, plan, 0, shard)
        assert commit is not None
        tar = shard_path(root, 0, shard).relative_to(root).as_posix()
        entries[tar] = FileEntry(bytes=commit.bytes, sha256=commit.sha256)
    others = [commit_path(root, 0, shard) for shard in range(plan.shard_count)]
    for path in [*others, index_path(root, 0), root / PLAN, root / CARD]:
        name = path.relative_to(root).as_posix()
        entries[name] = FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))
    return entries


def read_manifest(root: Path) -> Manifest:
    """The manifest of the sealed set at `root`.

    Raises:
        InputError: the set is not sealed, of another schema version, or its manifest is damaged.
    """
    if (root / PLAN).exists() and not (root / MANIFEST).exists():
        raise InputError(f"{root} is not finished (no {MANIFEST}); run clsp shards make again to complete it")
    content = read_json(root / MANIFEST)
    check_schema(content, root / MANIFEST)
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{root / MANIFEST}: {first_fault(error)}; fetch the file again") from error
