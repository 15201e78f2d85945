"""Begin a new layer of candidates for a sealed set: say what it is to hold, and write its plan."""

from pathlib import Path

from ...core import InputError, remove_temporaries, write_file
from ..format.commits import committed_shards
from ..format.layout import layer_name, plan_path
from ..format.manifest import Manifest, read_manifest
from ..format.plan import Plan, read_plan


def extension_plan(root: Path, candidates: int) -> tuple[int, Plan | None]:
    """Return number and plan of the layer that brings a set to `candidates` per anchor; no plan where it has them.

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
    """Return the name of a layer that has been begun for a sealed set and is no part of it yet, or None."""
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
    """Return True if the layer of this plan has been begun; raise InputError for another one."""
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
