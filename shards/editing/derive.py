"""Make new sets out of existing ones: `subset`, `merge`, `pack`. Encoded images are copied, never coded anew."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...core import InputError, Report, differences, owner_of, permutation, run_stamp
from ..format.layout import PLAN
from ..format.manifest import is_sealed
from ..format.plan import Derived, Plan, Selection, SourcePlan, indices_digest, write_plan
from ..format.seal import seal_if_complete, unfinished_shards
from ..format.writer import EncodedRecord, ShardWriter
from ..reading.shard_set import LayerReader, ShardSet
from ..remote.push_pull import pull
from .extend import start_layer

Members = list[tuple[int, int]]
"""(layer, place among a record's members) of every image of a new record, in tar order."""


@dataclass(frozen=True)
class Origin:
    """Says where each record of a new layer comes from: the number of its parent and the position there."""

    parents: Sequence[ShardSet]
    members: Members
    parent_N: np.ndarray
    position_N: np.ndarray


def subset_set(
    parent: ShardSet,
    out: Path,
    positions_N: np.ndarray,
    settings: dict[str, Any],
    report: Report | None = None,
) -> str:
    """Make the set of some anchors of `parent` (ascending positions), with all its layers; return the set ID.

    Raises:
        InputError: nothing is chosen, or `out` holds something else.
    """
    if len(positions_N) == 0:
        raise InputError(f"the subset of {parent.root} is empty; it has {len(parent)} anchors")

    selection = select(parent, parent.source_indices()[positions_N])
    derived = Derived(operation="subset", settings=settings, parents=[parentage(parent)])
    origin = Origin([parent], [], np.zeros(len(positions_N), np.uint8), positions_N)
    return _copy_layers(out, parent, selection, derived, origin, report)


def fraction_positions(parent: ShardSet, fraction: float) -> np.ndarray:
    """Choose a random part of the anchors by the source alone; smaller fractions lie inside larger ones."""
    shuffled = permutation(len(parent), parent.plan.source.digest, "subset")
    count = round(fraction * len(parent))
    return np.sort(shuffled[:count])


def range_positions(parent: ShardSet, first: int, stop: int) -> np.ndarray:
    """Return the positions of the anchors whose index in the source is in `first` … `stop - 1`."""
    indices = parent.source_indices()
    return np.flatnonzero((indices >= first) & (indices < stop))


def merge_sets(one: ShardSet, other: ShardSet, out: Path, report: Report | None = None) -> str:
    """Make one set out of two: more candidates for the same anchors, or more anchors of the same source.

    With the same anchors, the layers of `other` follow those of `one`, which are copied byte for byte, and its
    candidates are numbered on. With disjoint anchors, both must have been made by the same settings.

    Raises:
        InputError: the parents do not fit, naming the fields that differ, or `out` holds something else.
    """
    faults = _source_differences(one.plan.source, other.plan.source)
    if faults:
        raise _incompatible(one, other, [f"source.{fault}" for fault in faults])

    mine = one.source_indices()
    theirs = other.source_indices()
    if np.array_equal(mine, theirs):
        return _merge_candidates(one, other, out, report)

    common = len(np.intersect1d(mine, theirs))
    if common:
        raise InputError(
            f"{one.root} and {other.root} share {common} of {len(mine)} and {len(theirs)} anchors; expected the same "
            "anchors or disjoint ones: cut one of them with clsp shards subset"
        )

    return _merge_anchors(one, other, out, report)


def _source_differences(one: SourcePlan, other: SourcePlan) -> list[str]:
    """Return the fields in which two sources differ; a set of an earlier version keeps no names of classes."""
    mine = one.model_dump()
    theirs = other.model_dump()
    if not (one.classes and other.classes):
        mine.pop("classes", None)
        theirs.pop("classes", None)

    return differences(mine, theirs)


def pack_set(parent: ShardSet, out: Path, report: Report | None = None) -> str:
    """Make a set with all layers of `parent` in one; return the set ID.

    Raises:
        InputError: the layers have different codecs, or `out` holds something else.
    """
    codecs = {layer.plan.shards.codec for layer in parent.layers}
    if len(codecs) > 1:
        raise InputError(
            f"{parent.root} has layers coded as {' and '.join(sorted(codecs))}; expected one codec to pack"
        )

    shards = parent.plan.shards.model_copy(update={"candidates": parent.candidates})
    derived = Derived(operation="pack", settings={}, parents=[parentage(parent)])
    plan = parent.plan.revised(shards=shards, derived=derived)
    members: Members = []
    for layer in parent.layers:
        members += _own_members(layer)

    write_plan(out, plan)
    _write_layer(out, plan, 0, _whole(parent, members), report)

    return _sealed(out, plan, 0)


def select(parent: ShardSet, indices_N: np.ndarray) -> Selection | None:
    """Return the selection of these source indices, None where they are all of the source."""
    if len(indices_N) == parent.plan.source.count:
        return None
    return Selection(count=len(indices_N), digest=indices_digest(indices_N))


def parentage(shards: ShardSet) -> dict[str, Any]:
    """Return the facts that a derived set remembers of a parent."""
    return {
        "set_id": shards.set_id,
        "plan": shards.plan.digest,
        "layers": [layer.model_dump(mode="json") for layer in shards.manifest.layers],
        "provenance": dict(shards.manifest.provenance),
    }


def _merge_candidates(one: ShardSet, other: ShardSet, out: Path, report: Report | None) -> str:
    if not one.layers[0].index.column("anchor").equals(other.layers[0].index.column("anchor")):
        raise InputError(
            f"{one.root} and {other.root} hold other anchor images under the same keys; nothing was merged"
        )

    for layer in other.layers:
        for own in one.layers:
            if _same_images(own.plan, layer.plan):
                raise InputError(
                    f"{other.root} was made by the model and sampler of {one.root} (sampler.seed is the same too), so "
                    "its candidates are the same images; use clsp shards extend"
                )

    found = owner_of(out, PLAN, "shard set")
    if found is not None and found != one.plan.to_bytes():
        raise InputError(
            f"{out} holds another set than a merge of {one.root}; choose another --out"
        )

    if not is_sealed(out):
        pull(str(one.root), out, expect=one.set_id)

    # Append the layers of the other set, numbering their candidates on.
    end = one.candidates
    set_id = one.set_id

    for number, layer in enumerate(other.layers, start=len(one.layers)):
        changes = {"records": one.plan.shards.records, "include_anchors": False}
        shards = layer.plan.shards.model_copy(update=changes)
        derived = Derived(
            operation="merge", settings={"layer": layer.number}, parents=[parentage(other)]
        )
        plan = layer.plan.revised(
            shards=shards, first=end, derived=derived, selection=one.plan.selection
        )
        start_layer(out, number, plan)
        members = _own_members(layer, with_anchor=False)
        _write_layer(out, plan, number, _whole(other, members), report)
        end = plan.end
        set_id = _sealed(out, plan, number)

    return set_id


def _same_images(own: Plan, other: Plan) -> bool:
    same_model = own.diffusion.digest == other.diffusion.digest
    same_none = _class_for_none(own) == _class_for_none(other)  # which guidance goes away from
    same_sampler = own.sampler == other.sampler
    overlap = own.start < other.end and other.start < own.end
    return same_model and same_none and same_sampler and overlap


def _class_for_none(plan: Plan) -> int | None:
    return plan.diffusion.condition.null if plan.diffusion.condition else None


def _merge_anchors(one: ShardSet, other: ShardSet, out: Path, report: Report | None) -> str:
    if len(one.layers) != len(other.layers):
        raise _incompatible(
            one, other, [f"layers: {len(one.layers)} there, {len(other.layers)} here"]
        )

    for own, layer in zip(one.layers, other.layers, strict=True):
        faults = differences(_settings(own.plan), _settings(layer.plan))
        if faults:
            raise _incompatible(one, other, faults)

    # Order the records of both by their index in the source.
    indices = np.concatenate([one.source_indices(), other.source_indices()])
    order = np.argsort(indices, kind="stable")
    parents = np.concatenate([np.zeros(len(one), np.uint8), np.ones(len(other), np.uint8)])[order]
    positions = np.concatenate([np.arange(len(one)), np.arange(len(other))])[order]
    derived = Derived(operation="merge", settings={}, parents=[parentage(one), parentage(other)])
    selection = select(one, indices[order])

    return _copy_layers(
        out, one, selection, derived, Origin([one, other], [], parents, positions), report
    )


def _settings(plan: Plan) -> dict[str, Any]:
    """Return all of a plan, but its source, that must be equal in two sets with different anchors of one source."""
    settings = plan.revised(selection=None, derived=None).model_dump(mode="json")
    del settings["source"]
    return settings


def _incompatible(one: ShardSet, other: ShardSet, faults: list[str]) -> InputError:
    return InputError(f"{one.root} and {other.root} cannot be merged: {'; '.join(faults)}")


def _copy_layers(
    out: Path,
    like: ShardSet,
    selection: Selection | None,
    derived: Derived,
    origin: Origin,
    report: Report | None,
) -> str:
    """Make a set with the layers of `like` and the records of `origin`; return the set ID."""
    set_id = ""
    for layer in like.layers:
        if layer.number == 0:
            plan = layer.plan.revised(selection=selection, derived=derived)
            write_plan(out, plan)
        else:
            plan = layer.plan.revised(selection=selection)
            start_layer(out, layer.number, plan)

        layer_origin = replace(origin, members=_own_members(layer))
        _write_layer(out, plan, layer.number, layer_origin, report)
        set_id = _sealed(out, plan, layer.number)

    return set_id


def _own_members(layer: LayerReader, with_anchor: bool = True) -> Members:
    first = 1 if layer.plan.shards.include_anchors and not with_anchor else 0
    return [(layer.number, member) for member in range(first, len(layer.plan.image_fields))]


def _whole(parent: ShardSet, members: Members) -> Origin:
    """Return the origin of a layer that has these members of every record of one parent."""
    count = len(parent)
    return Origin([parent], members, np.zeros(count, np.uint8), np.arange(count))


def _write_layer(out: Path, plan: Plan, layer: int, origin: Origin, report: Report | None) -> None:
    parents = [parent.set_id for parent in origin.parents]
    todo = set(unfinished_shards(out, plan, layer, range(plan.shard_count)))
    for shard in range(plan.shard_count):
        if shard in todo:
            with ShardWriter(out, plan, layer, shard) as writer:
                for position in plan.shard_range(shard):
                    writer.add(_copied_record(origin, position))

                writer.commit({"copied_from": parents, **run_stamp("clsp", "numpy")})

        if report:
            report(plan.shard_range(shard).stop, plan.count)


def _copied_record(origin: Origin, position: int) -> EncodedRecord:
    parent = origin.parents[origin.parent_N[position]]
    place = int(origin.position_N[position])
    shard, row = divmod(place, parent.plan.shards.records)
    contents = []
    pixels = []

    for layer_number, member in origin.members:
        layer = parent.layers[layer_number]
        contents.append(parent.member_bytes(layer, place, member))
        pixels.append(layer.index.table(shard)[row]["pixels"][member].hex())

    facts = parent.layers[0].index.table(shard)[row]
    return EncodedRecord(
        key=facts["key"],
        index=facts["index"],
        label=facts["label"],
        anchor=facts["anchor"].hex(),
        contents=contents,
        pixels=pixels,
    )


def _sealed(out: Path, plan: Plan, layer: int) -> str:
    set_id = seal_if_complete(out, plan, layer)
    assert set_id is not None
    return set_id
