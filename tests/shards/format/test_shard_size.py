"""Shards of so many megabytes: against the bytes of the tars that are written."""

import json

import numpy as np
import pytest
from clsp.shards import ShardsConfig, ShardSet, verify_set, write_plan
from clsp.shards.editing.import_npy import import_npy, import_plan, open_npy
from clsp.shards.format.shard_size import record_bytes, with_records
from pictures import opened, photograph, put
from PIL import Image

COUNT = 60


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(COUNT):
        put(folder / f"{number:02d}.png", Image.fromarray(photograph(number, 64)))
    return opened(folder)


@pytest.fixture(scope="module")
def array(photographs, tmp_path_factory):
    """Two candidates of each: other photographs."""
    images = np.stack([anchor.image for anchor in photographs])
    path = tmp_path_factory.mktemp("array") / "candidates.npy"
    np.save(path, np.stack([np.roll(images, 7, axis=0), np.roll(images, 30, axis=0)], axis=1))
    return path


@pytest.mark.parametrize("codec", ["webp", "jpeg-95"])
@pytest.mark.parametrize("anchors", [True, False])
def test_shards_have_about_the_megabytes_that_are_asked_for(
    photographs, array, tmp_path, codec, anchors
):
    shards = ShardsConfig(megabytes=0.3, codec=codec, include_anchors=anchors)
    images = open_npy(array, photographs)
    plan = import_plan(array, images, photographs, shards)
    assert 1 < plan.shard_count < COUNT
    write_plan(tmp_path / "set", plan)
    import_npy(tmp_path / "set", plan, photographs, images)
    assert verify_set(tmp_path / "set", deep=True) == []

    sizes = [path.stat().st_size for path in sorted((tmp_path / "set").glob("layer-000/*.tar"))]
    assert all(0.24e6 < size < 0.33e6 for size in sizes[:-1])

    # The estimate of all records, beside the tars less their ends
    content = sum(sizes) - 10_240 / 2 * len(sizes)
    assert abs(COUNT * record_bytes(photographs, plan.shards) / content - 1) < 0.05
    assert len(ShardSet(tmp_path / "set", photographs)) == COUNT


def test_the_plan_has_the_number_alone(photographs, array):
    images = open_npy(array, photographs)
    by_bytes = import_plan(array, images, photographs, ShardsConfig(megabytes=0.3))
    records = by_bytes.shards.records
    by_number = import_plan(array, images, photographs, ShardsConfig(records=records))
    assert by_bytes.to_bytes() == by_number.to_bytes()
    assert "megabytes" not in json.loads(by_number.to_bytes())["shards"]


def test_numbers_are_rounded_and_bounded(photographs):
    one = record_bytes(photographs, ShardsConfig())

    def records(count: float) -> int:
        return with_records(ShardsConfig(megabytes=count * one / 1e6), photographs).records

    assert records(0.5) == 1
    assert records(17.5) == 17
    assert records(1019.5) == 1000 and records(1100.5) == 1100
    assert records(1e9) == 1_000_000
    assert with_records(ShardsConfig(records=77), photographs).records == 77
