"""Pairs as a webdataset pipeline: the pairs of `PairDataset`, each once an epoch, whoever reads them."""

import numpy as np
import pytest
import torch
import webdataset
from clsp.core import InputError, WorkError
from clsp.shards import ShardSet, pair_stream
from clsp.shards.format.layout import shard_path
from clsp.shards.reading.candidates import draw_candidate

pytestmark = [
    # webdataset leaves its tars to the garbage collector.
    pytest.mark.filterwarnings(
        "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
    ),
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
]


def check_pairs(samples, shards: ShardSet, seed: int, epoch: int) -> None:
    """Each sample is an anchor of the set and the candidate that (seed, epoch, key) draws."""
    for sample in samples:
        key = sample["__key__"]
        position = int(key.split("_")[1])
        candidate = draw_candidate(seed, epoch, key, shards.candidates)
        assert np.array_equal(sample["anchor"].permute(1, 2, 0).numpy(), shards.anchor(position))
        assert np.array_equal(
            sample["candidate"].permute(1, 2, 0).numpy(), shards.candidate(position, candidate)
        )
        assert sample["label"] == shards.label(position) and sample["weight"] == 1


def test_an_epoch_has_every_pair_once_and_the_next_draws_anew(shard_set):
    shards, samples = ShardSet(shard_set), list(pair_stream(shard_set, seed=3, epochs=2, shuffle=0))
    keys = [sample["__key__"] for sample in samples]
    assert (
        sorted(keys[:40]) == sorted(keys[40:]) == [shards.key(position) for position in range(40)]
    )
    check_pairs(samples[:40], shards, 3, 0)
    check_pairs(samples[40:], shards, 3, 1)


def test_samples_are_shuffled_by_the_seed(shard_set):
    def keys(seed: int, shuffle: int) -> list[str]:
        return [sample["__key__"] for sample in pair_stream(shard_set, seed=seed, shuffle=shuffle)]

    shuffled = keys(3, 20)
    assert shuffled == keys(3, 20) and sorted(shuffled) == sorted(keys(3, 0))
    assert shuffled != keys(3, 0) and shuffled != keys(4, 20)


def test_layers_are_read_side_by_side(make_set, tmp_path, model_folder, clsp):
    root = make_set(tmp_path / "set")
    found = clsp("shards", "extend", root, "--candidates", 5, "--diffusion", model_folder)
    assert found.returncode == 0, found.stderr
    samples = list(pair_stream(root, seed=1, shuffle=0))
    check_pairs(samples, ShardSet(root), 1, 0)
    assert {draw_candidate(1, 0, sample["__key__"], 5) for sample in samples} == set(range(5))


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_workers_share_the_shards(ten_shards, workers):
    stream = pair_stream(ten_shards, seed=0).batched(5)
    batches = list(webdataset.WebLoader(stream, batch_size=None, num_workers=workers))
    assert sum(len(batch["__key__"]) for batch in batches) == 40
    assert len({key for batch in batches for key in batch["__key__"]}) == 40
    assert (
        batches[0]["candidate"].shape == (5, 3, 8, 8)
        and batches[0]["candidate"].dtype == torch.uint8
    )


def test_ranks_share_the_shards(ten_shards, monkeypatch):
    read = []
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        read.append({sample["__key__"] for sample in pair_stream(ten_shards, shuffle=0)})
    assert len(read[0]) == len(read[1]) == 20 and not read[0] & read[1]


def test_a_url_is_read_through_the_cache(web, tmp_path, ten_shards):
    local = [sample["__key__"] for sample in pair_stream(ten_shards, seed=2)]
    assert [sample["__key__"] for sample in pair_stream(web.url, seed=2, cache=tmp_path)] == local
    assert len(list(tmp_path.glob("*/layer-000/*.tar"))) == 10


def test_a_stream_needs_anchors(make_set, tmp_path):
    root = make_set(tmp_path / "set", include_anchors=False)
    with pytest.raises(InputError, match=r"holds no anchors.*PairDataset"):
        pair_stream(root)


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_tar_that_was_cut_is_named(make_set, tmp_path, cut):
    """In the middle of a member and between two of them, of which webdataset itself says nothing."""
    root = make_set(tmp_path / "set")
    tar = shard_path(root, 0, 1)
    content = tar.read_bytes()
    tar.chmod(0o644)
    tar.write_bytes(content[: len(content) // 512 * 512 * cut // 8])
    with pytest.raises(WorkError, match=r"shard-000001.*clsp shards repair"):
        list(pair_stream(root))


def test_a_missing_tar_is_named(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    shard_path(root, 0, 2).unlink()
    with pytest.raises(WorkError, match=r"shard-000002.tar cannot be read.*clsp shards repair"):
        list(pair_stream(root))
