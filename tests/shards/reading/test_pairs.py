import json
import multiprocessing

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.shards import BatchOrder, PairDataset, PairLoader, ShardSet
from clsp.shards.reading.candidates import draw_candidate


@pytest.fixture(scope="module")
def shards(shard_set):
    return ShardSet(shard_set)


def loaded(shards, workers, rank=0, world_size=1, first=0, last=4, **options):
    order = BatchOrder([16, 16, 8], shards.plan.digest, 5, 16, rank, world_size)
    return list(PairLoader(PairDataset(shards, 5, **options), order, last, first, workers))


def test_a_pair_is_an_anchor_and_the_candidate_drawn_for_the_epoch(shards):
    for number, batch in enumerate(loaded(shards, 0)):
        for row, key in enumerate(batch.keys):
            position = int(key.split("_")[1])
            candidate = draw_candidate(5, number // 2, key, 3)
            expected = torch.from_numpy(shards.candidate(position, candidate).copy()).permute(
                2, 0, 1
            )
            assert torch.equal(batch.candidates_BCHW[row], expected)
            assert np.array_equal(
                batch.anchors_BCHW[row].permute(1, 2, 0).numpy(), shards.anchor(position)
            )
            assert batch.labels_B[row] == shards.labels()[position]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(shards, workers):
    for one, other in zip(loaded(shards, 0), loaded(shards, workers), strict=True):
        assert one.keys == other.keys and torch.equal(one.candidates_BCHW, other.candidates_BCHW)


def test_two_ranks_share_the_batches_of_one_and_a_resume_goes_on(shards):
    whole = loaded(shards, 0)
    halves = [loaded(shards, 0, rank, 2) for rank in range(2)]
    assert [a.keys + b.keys for a, b in zip(*halves, strict=True)] == [
        batch.keys for batch in whole
    ]
    assert [batch.keys for batch in loaded(shards, 0, first=3)] == [whole[3].keys]


def test_without_candidates_none_is_read(shards, monkeypatch):
    monkeypatch.setattr(
        type(shards), "candidate_member", lambda *_: pytest.fail("read a candidate")
    )
    assert loaded(shards, 0, with_candidates=False)[0].candidates_BCHW is None


def read_by_a_rank(shards, workers, rank, world_size, first, results):
    order = BatchOrder([16, 16, 8], shards.plan.digest, 5, 8, rank, world_size)
    loader = PairLoader(PairDataset(shards, 5), order, 10, first, workers)
    batches = [(batch.keys, batch.candidates_BCHW.numpy().tobytes()) for batch in loader]
    results.put((rank, batches))


def read_by_processes(shards, world_size, workers, first=0):
    """The global batches `first` … 9 as read by real processes: [(keys, candidates' bytes)]."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    arguments = [(shards, workers, rank, world_size, first, results) for rank in range(world_size)]
    processes = [context.Process(target=read_by_a_rank, args=one) for one in arguments]
    for process in processes:
        process.start()
    found = dict(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    parts = [found[rank] for rank in range(world_size)]
    assert len({len(part) for part in parts}) == 1
    return [
        (sum((keys for keys, _ in batch), []), b"".join(data for _, data in batch))
        for batch in zip(*parts, strict=True)
    ]


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:This process .* is multi-threaded"
)
@pytest.mark.parametrize(
    ("world_size", "workers"), [(1, 0), (1, 3), (2, 0), (2, 2), (4, 0), (4, 1)]
)
def test_processes_and_workers_read_the_same_global_batches(shards, world_size, workers):
    expected = [
        (batch.keys, batch.candidates_BCHW.numpy().tobytes())
        for batch in PairLoader(
            PairDataset(shards, 5), BatchOrder([16, 16, 8], shards.plan.digest, 5, 8), 10
        )
    ]
    found = read_by_processes(shards, world_size, workers)
    assert found == expected
    for epoch in (found[:5], found[5:]):
        assert sorted(sum((keys for keys, _ in epoch), [])) == [
            shards.key(position) for position in range(40)
        ]
    assert (
        read_by_processes(shards, world_size, workers, first=7) == expected[7:]
    )  # as after a resume


def test_a_saved_state_goes_on_in_another_world(shards):
    whole = PairLoader(
        PairDataset(shards, 5), BatchOrder([16, 16, 8], shards.plan.digest, 5, 8), 10
    )
    reading = iter(whole)
    for _ in range(7):
        next(reading)
    state = json.loads(json.dumps(whole.state_dict()))
    assert (state["epoch"], state["samples_seen"], state["seed"]) == (1, 16, 5)
    rest = [batch.keys for batch in reading]
    ranks = []
    for rank in range(4):
        loader = PairLoader(
            PairDataset(shards, 5), BatchOrder([16, 16, 8], shards.plan.digest, 5, 8, rank, 4), 10
        )
        loader.load_state_dict(state)
        ranks.append([batch.keys for batch in loader])
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == rest


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"plan": "0" * 64}, "plan"),
        ({"layers": {"layer-000": "0" * 64}}, "layers.layer-000"),
        ({"seed": 6}, "seed"),
    ],
)
def test_a_state_of_other_data_is_refused(shards, change, named):
    loader = PairLoader(
        PairDataset(shards, 5), BatchOrder([16, 16, 8], shards.plan.digest, 5, 8), 10
    )
    with pytest.raises(InputError, match=named):
        loader.load_state_dict({**loader.state_dict(), **change})
    with pytest.raises(InputError, match="no multiple of 8"):
        loader.load_state_dict({**loader.state_dict(), "samples_seen": 12})
