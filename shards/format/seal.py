"""Seal a finished set: write indexes, card and manifest. Sealing twice gives the same bytes."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...core import WorkError, remove_temporaries, sha256_file, write_file
from ...core.files import sync_directory
from .card import card
from .commits import committed_shards, read_commit
from .croissant import croissant
from .index import write_index
from .layout import (
    CARD,
    CROISSANT,
    DESCRIPTIONS,
    MANIFEST,
    index_path,
    layer_files,
    layer_name,
    relative,
    scores_path,
    shard_path,
)
from .manifest import FileEntry, Layer, Manifest, is_sealed, read_manifest
from .plan import Plan, read_plan


def seal_if_complete(root: Path, plan: Plan, layer: int = 0) -> str | None:
    """Seal the set with this layer if every shard of it is committed and return the set ID, else None.

    Any process may call it at any time; there is nothing to wait for, since all of them write the same bytes. A layer
    joins the layers below it, which the manifest must already have.
    """
    if len(committed_shards(root, plan, layer)) < plan.shard_count:
        return None

    old = read_manifest(root) if is_sealed(root) else None
    if old is not None and layer < len(old.layers):
        return old.set_id

    remove_temporaries(root)
    write_index(root, plan, layer)

    files = dict(old.files) if old else {}
    files.update(_layer_entries(root, plan, layer))
    plans = [read_plan(root, number) for number in range(layer + 1)]

    return _write_seal(root, plans, files, old)


def unfinished_shards(root: Path, plan: Plan, layer: int, shards: Iterable[int]) -> list[int]:
    """Return those of `shards` that are still to be written.

    Raises:
        WorkError: the layer is sealed, so that they are damaged; a second writing would not give the sealed records.
    """
    finished = committed_shards(root, plan, layer)
    todo = [shard for shard in shards if shard not in finished]
    if todo and is_sealed(root) and layer < len(read_manifest(root).layers):
        raise WorkError(
            f"{root} is sealed but {len(todo)} of its shards are damaged; run: clsp shards verify {root}"
        )

    return todo


def add_scores_entry(root: Path, name: str) -> str:
    """Seal the set again with `scores/NAME.parquet`, which lies there already; return the new set ID."""
    old = read_manifest(root)
    path = scores_path(root, name)
    plans = [read_plan(root, number) for number in range(len(old.layers))]
    files = {**old.files, relative(root, path): _entry(path)}
    return _write_seal(root, plans, files, old)


def _write_seal(
    root: Path, plans: list[Plan], files: dict[str, FileEntry], old: Manifest | None
) -> str:
    """Write card, Croissant metadata and, last, the manifest; what a later version put into `old` stays in it."""
    for name, content in descriptions(plans, files).items():
        write_file(root / name, content)

    kept: dict[str, Any] = old.model_dump(exclude={"layers", "files"}) if old else {}
    layers = list(old.layers) if old else []
    for number, plan in enumerate(plans[len(layers) :], start=len(layers)):
        layers.append(
            Layer(name=layer_name(number), first=plan.start, candidates=plan.shards.candidates)
        )

    described = {name: _entry(root / name) for name in DESCRIPTIONS}
    known = {
        "plan": plans[0].digest,
        "provenance": kept.get("provenance", {}) | provenance(plans),
        "layers": layers,
        "files": files | described,
    }
    manifest = Manifest(**kept | known)

    # A writer may have been killed between a rename and its directory's sync.
    for folder in sorted({(root / name).parent for name in files}):
        sync_directory(folder)

    write_file(root / MANIFEST, manifest.to_bytes())
    return manifest.set_id


def descriptions(plans: list[Plan], files: dict[str, FileEntry]) -> dict[str, bytes]:
    """Write `README.md` and `croissant.json` anew, which follow from the plans and the digests of the indexes."""
    layers = []
    for number, plan in enumerate(plans):
        index = files[index_path(Path(), number).as_posix()]
        layers.append((layer_name(number), plan.image_fields, index.sha256))
    return {CARD: card(plans), CROISSANT: croissant(plans[0], layers)}


def provenance(plans: list[Plan]) -> dict[str, Any]:
    """Return source, diffusion model and sampler of a set, of added layers too, with the parents of derived ones."""
    facts = {"source": plans[0].source.model_dump(mode="json"), **_layer_provenance(plans[0])}
    added = {}
    for number, plan in enumerate(plans[1:], start=1):
        added[layer_name(number)] = _layer_provenance(plan)

    if added:
        facts["layers"] = added

    return facts


def _layer_provenance(plan: Plan) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "diffusion": plan.diffusion.model_dump(mode="json"),
        "sampler": dict(plan.sampler),
    }
    if plan.derived:
        facts["derived"] = plan.derived.model_dump(mode="json")

    return facts


def _layer_entries(root: Path, plan: Plan, layer: int) -> dict[str, FileEntry]:
    tars = {}
    for shard in range(plan.shard_count):
        commit = read_commit(root, plan, layer, shard)
        assert commit is not None
        tars[shard_path(root, layer, shard)] = FileEntry(bytes=commit.bytes, sha256=commit.sha256)

    paths = layer_files(root, layer, plan.shard_count)
    return {relative(root, path): tars.get(path) or _entry(path) for path in paths}


def _entry(path: Path) -> FileEntry:
    return FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))
