import hashlib
from pathlib import Path

import numpy as np
import pytest
from clsp.core import WorkError
from clsp.generate import Sampler, SamplerConfig, assigned_shards, make_plan, make_shards
from clsp.shards import ShardsConfig, ShardSet, verify_set, write_plan
from clsp.shards.format.plan import read_plan


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_every_shard_belongs_to_exactly_one_process(parts, world_size):
    mine = [
        assigned_shards(29, (part, parts), rank, world_size)
        for part in range(parts)
        for rank in range(world_size)
    ]
    assert sorted(sum(mine, [])) == list(range(29))


def content_digests(root: Path) -> dict[str, str]:
    files = [*root.glob("layer-*/*.tar"), *root.glob("*.parquet"), root / "plan.json"]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def test_parts_and_processes_give_the_bytes_of_one(model, digits, shard_set, tmp_path):
    config, shards = SamplerConfig(steps=2, micro_batch=8), ShardsConfig(candidates=3, records=16)
    plan = make_plan(digits, model, config, shards)
    write_plan(tmp_path / "set", plan)
    sealed = [
        make_shards(tmp_path / "set", plan, digits, Sampler(model, config), (part, 2), rank, 2)
        for part in range(2)
        for rank in range(2)
    ]
    assert sealed[:2] == [None, None] and sealed[-1] is not None
    assert content_digests(tmp_path / "set") == content_digests(shard_set)


def test_candidates_are_the_samplers_and_anchors_the_sources(model, digits, shard_set):
    shards = ShardSet(shard_set)
    sampler = Sampler(model, SamplerConfig(steps=2, micro_batch=8))
    chosen = digits[16:24]  # the first micro-batch of the second shard
    expected = sampler(
        np.stack([anchor.image for anchor in chosen]), [anchor.key for anchor in chosen], 3
    )
    for row, anchor in enumerate(chosen):
        assert np.array_equal(shards.anchor(anchor.index), anchor.image)
        for candidate in range(3):
            assert np.array_equal(
                shards.candidate(anchor.index, candidate), expected[row, candidate]
            )


def test_a_second_writer_of_the_same_part_changes_nothing(model, digits, shard_set, tmp_path):
    """Both start on an empty set; the second makes everything while the first is in its first shard."""
    config, shards = SamplerConfig(steps=2, micro_batch=8), ShardsConfig(candidates=3, records=16)
    plan, root = make_plan(digits, model, config, shards), tmp_path / "set"
    write_plan(root, plan)
    sampler = Sampler(model, config)
    sealed: list[str | None] = []

    class Overtaken(Sampler):
        def __call__(self, *arguments, **options):
            if not sealed:
                sealed.append(make_shards(root, plan, digits, sampler))
            return super().__call__(*arguments, **options)

    assert make_shards(root, plan, digits, Overtaken(model, config)) == sealed[0] is not None
    assert verify_set(root, deep=True) == [] and content_digests(root) == content_digests(shard_set)
    assert not list(root.rglob("*.tmp"))


def test_a_damaged_shard_of_a_sealed_set_is_reported_not_remade(model, digits, make_set, tmp_path):
    root = make_set(tmp_path / "set")
    (root / "layer-000" / "shard-000001.tar").unlink()
    before = (root / "commits" / "layer-000" / "shard-000001.json").read_bytes()
    config = SamplerConfig(steps=2, micro_batch=8)
    with pytest.raises(WorkError, match="clsp shards verify"):
        make_shards(root, read_plan(root), digits, Sampler(model, config))
    assert (root / "commits" / "layer-000" / "shard-000001.json").read_bytes() == before


def test_a_shard_of_flat_colours_is_refused_naming_anchors(model, digits, tmp_path):
    config = SamplerConfig(steps=2, micro_batch=8)
    plan = make_plan(digits, model, config, ShardsConfig(candidates=3, records=16))

    class Flat(Sampler):
        def __call__(self, anchors_BHWC, keys, candidates, first=0, classes=None):
            images = super().__call__(anchors_BHWC, keys, candidates, first, classes)
            images[:6] = 128  # of a micro-batch of 8
            return images

    write_plan(tmp_path / "set", plan)
    flat = Flat(model, config)
    with pytest.raises(
        WorkError, match=r"12 of 16 anchors is one flat colour \(train_00000000, train_00000001"
    ):
        make_shards(tmp_path / "set", plan, digits, flat)
    assert not list((tmp_path / "set").glob("layer-000/*"))
