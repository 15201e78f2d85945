"""New sets out of old ones: what is copied is compared with sets made in one go."""

import json
import shutil
import time
from datetime import UTC, datetime

import numpy as np
import pytest
from clsp.core import InputError, WorkError
from clsp.generate import Sampler, SamplerConfig, make_plan, make_shards
from clsp.shards import (
    ShardsConfig,
    ShardSet,
    merge_sets,
    pack_set,
    subset_set,
    verify_set,
    write_plan,
)
from clsp.shards.editing.derive import fraction_positions, range_positions
from pictures import many, opened


def tars(root, layer="layer-000"):
    return [path.read_bytes() for path in sorted(root.glob(f"{layer}/*.tar"))]


def contents(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def other_team(model, digits, tmp_path_factory):
    """The same anchors, another sampler seed, K = 2, other shard cuts."""
    root = tmp_path_factory.mktemp("other") / "set"
    config = SamplerConfig(steps=2, micro_batch=8, seed=7)
    plan = make_plan(digits, model, config, ShardsConfig(candidates=2, records=8))
    write_plan(root, plan)
    make_shards(root, plan, digits, Sampler(model, config))
    return root


def test_a_subset_has_the_records_of_its_parent(shard_set, tmp_path):
    parent, before = ShardSet(shard_set), contents(shard_set)
    subset_set(parent, tmp_path / "set", range_positions(parent, 10, 31), {"range": [10, 31]})
    part = ShardSet(tmp_path / "set")
    assert [part.source_index(i) for i in range(len(part))] == list(range(10, 31))
    for position in range(21):
        assert part.key(position) == parent.key(position + 10) and part.label(
            position
        ) == parent.label(position + 10)
        assert part.anchor_bytes(position) == parent.anchor_bytes(position + 10)
        assert part.candidate_bytes(position, 2) == parent.candidate_bytes(position + 10, 2)
    assert verify_set(tmp_path / "set", deep=True) == [] and contents(shard_set) == before
    parents = part.manifest.provenance["derived"]["parents"]
    assert (
        parents[0]["set_id"] == parent.set_id
        and parents[0]["provenance"] == parent.manifest.provenance
    )


def test_fractions_are_nested_and_depend_on_the_source_alone(shard_set, other_team):
    small, large = (set(fraction_positions(ShardSet(shard_set), part)) for part in (0.1, 0.5))
    assert (len(small), len(large)) == (4, 20) and small < large
    assert small == set(fraction_positions(ShardSet(other_team), 0.1))


def test_disjoint_subsets_merge_into_the_bytes_of_the_whole(shard_set, tmp_path):
    parent = ShardSet(shard_set)
    chosen = fraction_positions(parent, 0.3)
    rest = np.setdiff1d(np.arange(40), chosen)
    for name, positions in (("a", chosen), ("b", rest)):
        subset_set(parent, tmp_path / name, positions, {})
    merge_sets(ShardSet(tmp_path / "b"), ShardSet(tmp_path / "a"), tmp_path / "whole")
    assert tars(tmp_path / "whole") == tars(shard_set)
    assert (tmp_path / "whole" / "layer-000.parquet").read_bytes() == (
        shard_set / "layer-000.parquet"
    ).read_bytes()
    assert verify_set(tmp_path / "whole", deep=True) == []


def test_another_teams_candidates_become_a_layer(shard_set, other_team, tmp_path):
    set_id = merge_sets(ShardSet(shard_set), ShardSet(other_team), tmp_path / "both")
    one, other, both = ShardSet(shard_set), ShardSet(other_team), ShardSet(tmp_path / "both")
    assert (
        both.set_id == set_id
        and both.candidates == 5
        and tars(tmp_path / "both") == tars(shard_set)
    )
    for position in range(40):
        assert both.candidate_bytes(position, 1) == one.candidate_bytes(position, 1)
        assert both.candidate_bytes(position, 3) == other.candidate_bytes(position, 0)
        assert both.candidate_bytes(position, 4) == other.candidate_bytes(position, 1)
    assert both.manifest.provenance["layers"]["layer-001"]["sampler"]["seed"] == 7
    assert verify_set(tmp_path / "both", deep=True) == []
    before = contents(tmp_path / "both")
    assert (
        merge_sets(one, other, tmp_path / "both") == set_id
        and contents(tmp_path / "both") == before
    )


def test_a_set_that_names_its_classes_merges_with_one_of_an_earlier_version(
    model, tmp_path, other_team
):
    """Which numbered them alike and kept no names; other pixels or other labels do not fit."""
    for name in ("cats", "dogs"):
        many(tmp_path / "images" / name, 2)
    anchors = opened(tmp_path / "images")

    def made(name: str, seed: int, **source) -> ShardSet:
        config = SamplerConfig(steps=1, micro_batch=4, seed=seed)
        plan = make_plan(anchors, model, config, ShardsConfig(candidates=1, records=4))
        plan = plan.revised(source=plan.source.model_copy(update=source))
        write_plan(tmp_path / name, plan)
        make_shards(tmp_path / name, plan, anchors, Sampler(model, config))
        return ShardSet(tmp_path / name)

    new = made("new", 0)
    old = made("old", 1, classes=None)
    assert new.plan.source.classes == ["cats", "dogs"]
    merge_sets(new, old, tmp_path / "both")
    assert ShardSet(tmp_path / "both").candidates == 2

    for name, source in (("alpha", {"background": "#ffffff"}), ("words", {"label_rule": "other"})):
        other = made(name, 2, **source)
        with pytest.raises(InputError, match=f"source.{next(iter(source))}"):
            merge_sets(new, other, tmp_path / "no")


def test_packing_a_merge_gives_one_layer(shard_set, other_team, tmp_path):
    merge_sets(ShardSet(shard_set), ShardSet(other_team), tmp_path / "both")
    pack_set(ShardSet(tmp_path / "both"), tmp_path / "packed")
    both, packed = ShardSet(tmp_path / "both"), ShardSet(tmp_path / "packed")
    assert (len(packed.layers), packed.candidates) == (1, 5)
    assert all(packed.candidate_bytes(7, k) == both.candidate_bytes(7, k) for k in range(5))
    assert verify_set(tmp_path / "packed", deep=True) == []


def test_an_interrupted_edit_goes_on(shard_set, tmp_path):
    parent = ShardSet(shard_set)

    def interrupt(done, total):
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        subset_set(parent, tmp_path / "set", np.arange(35), {}, interrupt)
    first = next((tmp_path / "set" / "layer-000").iterdir())
    written = first.stat().st_mtime_ns
    subset_set(parent, tmp_path / "set", np.arange(35), {})
    assert first.stat().st_mtime_ns == written and verify_set(tmp_path / "set", deep=True) == []


def test_what_does_not_fit_is_named(shard_set, other_team, tmp_path):
    one = ShardSet(shard_set)
    half = tmp_path / "half"
    subset_set(one, half, np.arange(20), {})
    with pytest.raises(InputError, match="share 20 of 40 and 20 anchors"):
        merge_sets(one, ShardSet(half), tmp_path / "x")
    with pytest.raises(InputError, match="same images; use clsp shards extend"):
        merge_sets(one, one, tmp_path / "x")
    subset_set(ShardSet(other_team), tmp_path / "tail", np.arange(20, 40), {})
    with pytest.raises(
        InputError, match=r"sampler\.seed: 0 there, 7 here.*shards\.candidates: 3 there, 2 here"
    ):
        merge_sets(ShardSet(half), ShardSet(tmp_path / "tail"), tmp_path / "x")
    shutil.copytree(other_team, tmp_path / "elsewhere")
    for name in ("plan.json", "manifest.json"):
        path = tmp_path / "elsewhere" / name
        content = json.loads(path.read_text())
        content.get("source", {}).update(digest="0" * 32)
        path.write_text(json.dumps(content))
    assert not (tmp_path / "x").exists()
    with pytest.raises(InputError, match="empty"):
        subset_set(one, tmp_path / "x", range_positions(one, 50, 60), {})


def test_a_sealed_edit_with_a_damaged_shard_is_not_written_again(shard_set, tmp_path):
    parent, root = ShardSet(shard_set), tmp_path / "set"
    subset_set(parent, root, np.arange(20), {})
    next(root.glob("layer-000/*")).unlink()
    before = contents(root)
    with pytest.raises(WorkError, match="1 of its shards are damaged; run: clsp shards verify"):
        subset_set(parent, root, np.arange(20), {})
    assert contents(root) == before


def test_commit_records_of_edits_have_the_time_in_utc(shard_set, tmp_path, monkeypatch):
    monkeypatch.setenv("TZ", "Etc/GMT-9")
    time.tzset()
    try:
        subset_set(ShardSet(shard_set), tmp_path / "set", np.arange(5), {})
    finally:
        monkeypatch.undo()
        time.tzset()
    record = json.loads(next((tmp_path / "set" / "commits").rglob("*.json")).read_text())
    finished = datetime.fromisoformat(record["made"]["finished"])
    assert abs((datetime.now(UTC) - finished).total_seconds()) < 60


def test_more_candidates_than_a_layer_may_have_are_refused(shard_set, tmp_path, monkeypatch):
    parent = ShardSet(shard_set)
    monkeypatch.setattr(ShardSet, "candidates", property(lambda _: 257))
    with pytest.raises(InputError, match=r"shards\.candidates: .*less than or equal to 256"):
        pack_set(parent, tmp_path / "set")
    assert not (tmp_path / "set").exists()
