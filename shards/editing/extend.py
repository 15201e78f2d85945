"""A new layer of candidates for a sealed set: what it is to hold, and its beginning on disk."""

from pathlib import Path

from ...core import InputError, remove_temporaries, write_file
from ..format.commits import committed_shards
from ..format.layout import layer_name, plan_path
from ..format.manifest import Manifest, read_manifest
from ..format.plan import Plan, read_plan


def extension_plan(root: Path, candidates: int) -> tuple[int, Plan | None]:
    """(number, plan) of the layer that brings the set at `root` to `candidates` per anchor; None where it has them.

    Raises:
        InputError: it has more already, or another layer is unfinished.
    """
    manifest = read_manifest(root)
    base = read_plan(root)
    layer = len(manifest.layers)
    have = manifest.candidates
    if candidates < have:
        raise InputError(
            f"--candidates {candidates}: {root} has {have} per anchor; expected a larger total"
        )
    if candidates == have:
        return layer, None

    shards = base.shards.model_copy(
        update={"candidates": candidates - have, "include_anchors": False}
    )
    plan = base.revised(shards=shards, first=have, derived=None)
    _check_begun(root, layer, plan)

    return layer, plan


def unfinished_layer(root: Path, manifest: Manifest) -> str | None:
    """The name of the layer that has been begun for the sealed set at `root` and is no part of it yet, or None."""
    layer = len(manifest.layers)
    return layer_name(layer) if plan_path(root, layer).exists() else None


def start_layer(root: Path, layer: int, plan: Plan) -> None:
    """Write the plan of a layer that is to be added, or go on with it.

    Raises:
        InputError: a layer of another plan has been begun there.
    """
    if not _check_begun(root, layer, plan):
        write_file(plan_path(root, layer), plan.to_bytes())
    remove_temporaries(root)


def _check_begun(root: Path, layer: int, plan: Plan) -> bool:
    """True if the layer of this plan has been begun; raises InputError for another one."""
    if not plan_path(root, layer).exists():
        return False

    begun = read_plan(root, layer)
    if begun != plan:
        done = len(committed_shards(root, begun, layer))
        raise InputError(
            f"{root} has an unfinished layer, {begun.end} candidates in all ({done}/{begun.shard_count} shards); "
            f"finish it first, the way it was begun (extend: --candidates {begun.end})"
        )

    return True
