import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from clsp.core import InputError, WorkError
from clsp.shards import (
    AnchorsConfig,
    BatchOrder,
    ImageSource,
    PairDataset,
    PairLoader,
    ShardSet,
)
from clsp.shards.example import make_example_set


def test_anchors_labels_and_keys_are_the_sources(shard_set, digits):
    shards = ShardSet(shard_set)
    assert len(shards) == 40 and shards.candidates == 3 and shards.size == 8
    assert np.array_equal(shards.labels(), digits.labels())
    for anchor in digits:
        assert shards.key(anchor.index) == anchor.key
        assert np.array_equal(shards.anchor(anchor.index), anchor.image)


def test_a_pickled_set_reads_the_same(shard_set):
    shards = ShardSet(shard_set)
    shards.candidate(0, 0)
    assert np.array_equal(
        pickle.loads(pickle.dumps(shards)).candidate(39, 2), shards.candidate(39, 2)
    )


def test_without_anchors_they_are_joined_from_the_source(make_set, tmp_path, digits, shard_set):
    root = make_set(tmp_path / "set", include_anchors=False)
    with pytest.raises(InputError, match="give its source"):
        ShardSet(root).anchor(0)
    joined = ShardSet(root, digits)
    assert np.array_equal(joined.anchor(17), digits[17].image)
    assert np.array_equal(joined.candidate(17, 1), ShardSet(shard_set).candidate(17, 1))
    with pytest.raises(InputError, match="40, 8, 'crop'"):
        ShardSet(root, ImageSource(AnchorsConfig(limit=39)))
    with pytest.raises(WorkError, match="not the image the set was made from"):
        other = ImageSource(AnchorsConfig(limit=40))
        other.source = ImageSource(AnchorsConfig(split="test")).source
        ShardSet(root, other).anchor(0)


def test_unsealed_foreign_and_newer_sets_are_refused(shard_set, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        ShardSet(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(shard_set, copy)
    manifest = copy / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "schema_version": "2.0"}))
    with pytest.raises(InputError, match=r"schema version 2\.0"):
        ShardSet(copy)
    manifest.write_text(json.dumps({**content, "plan": "0" * 64}))
    with pytest.raises(InputError, match="not the manifest's"):
        ShardSet(copy)
    manifest.unlink()
    with pytest.raises(InputError, match="not finished"):
        ShardSet(copy)


def test_a_loader_is_the_parts_put_together(tmp_path):
    shards = make_example_set(tmp_path, anchors=10)
    order = BatchOrder(shards.shard_sizes, shards.plan.digest, seed=3, batch_size=4)
    parts = PairLoader(PairDataset(shards, seed=3), order, last=2 * order.batches_per_epoch)

    for batch, expected in zip(shards.loader(4, epochs=2, seed=3), parts, strict=True):
        assert batch.keys == expected.keys
        assert torch.equal(batch.candidates_BCHW, expected.candidates_BCHW)
