import numpy as np
import pytest
import torch
from clsp.shards import BatchOrder, PairDataset, ShardSet, draw_candidate, pair_loader


@pytest.fixture(scope="module")
def shards(shard_set):
    return ShardSet(shard_set)


def loaded(shards, workers, rank=0, world_size=1, first=0, last=4, **options):
    order = BatchOrder([16, 16, 8], shards.plan.digest, 5, 16, rank, world_size)
    return list(pair_loader(PairDataset(shards, 5, **options), order, first, last, workers))


def test_a_pair_is_an_anchor_and_the_candidate_drawn_for_the_epoch(shards):
    for number, batch in enumerate(loaded(shards, 0)):
        for row, key in enumerate(batch.keys):
            position = int(key.split("_")[1])
            candidate = draw_candidate(5, number // 2, key, 3)
            expected = torch.from_numpy(shards.candidate(position, candidate).copy()).permute(2, 0, 1)
            assert torch.equal(batch.candidates_BCHW[row], expected)
            assert np.array_equal(batch.anchors_BCHW[row].permute(1, 2, 0).numpy(), shards.anchor(position))
            assert batch.labels_B[row] == shards.labels()[position]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(shards, workers):
    for one, other in zip(loaded(shards, 0), loaded(shards, workers), strict=True):
        assert one.keys == other.keys and torch.equal(one.candidates_BCHW, other.candidates_BCHW)


def test_two_ranks_share_the_batches_of_one_and_a_resume_goes_on(shards):
    whole = loaded(shards, 0)
    halves = [loaded(shards, 0, rank, 2) for rank in range(2)]
    assert [a.keys + b.keys for a, b in zip(*halves, strict=True)] == [batch.keys for batch in whole]
    assert [batch.keys for batch in loaded(shards, 0, first=3)] == [whole[3].keys]


def test_without_candidates_none_is_read(shards, monkeypatch):
    monkeypatch.setattr(type(shards), "candidate_bytes", lambda *_: pytest.fail("read a candidate"))
    assert loaded(shards, 0, with_candidates=False)[0].candidates_BCHW is None
