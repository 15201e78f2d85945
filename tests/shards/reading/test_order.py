import numpy as np
import pytest
from clsp.core import InputError
from clsp.shards import BatchOrder
from clsp.shards.reading.candidates import draw_candidate
from clsp.shards.reading.order import epoch_order
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30),
    seed=st.integers(0, 2**32),
    epoch=st.integers(0, 99),
)
def test_an_epoch_has_every_position_once(sizes, seed, epoch):
    assert sorted(epoch_order(sizes, "plan", seed, epoch, window=4)) == list(range(sum(sizes)))


def test_order_depends_on_plan_seed_and_epoch_alone():
    orders = [
        tuple(epoch_order([8] * 8, *name))
        for name in (("p", 0, 0), ("q", 0, 0), ("p", 1, 0), ("p", 0, 1))
    ]
    assert len(set(orders)) == 4
    assert tuple(epoch_order([8] * 8, "p", 0, 0)) == orders[0]


def test_records_are_shuffled_inside_windows_of_shards():
    order = epoch_order([10] * 40, "p", 0, 0, window=4)
    windows = [
        {position // 10 for position in order[start : start + 40]} for start in range(0, 400, 40)
    ]
    assert all(len(window) == 4 for window in windows)
    assert len(set().union(*windows)) == 40


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_global_batches_are_the_same_for_any_world_size(world_size):
    whole = list(BatchOrder([7] * 10, "p", 3, 12).batches(0, 11))
    ranks = [
        list(BatchOrder([7] * 10, "p", 3, 12, rank, world_size).batches(0, 11))
        for rank in range(world_size)
    ]
    assert [sum(parts, []) for parts in zip(*ranks, strict=True)] == whole


@pytest.mark.parametrize(
    ("batch_size", "world_size", "found"), [(71, 1, "70 anchors"), (12, 5, "5 processes")]
)
def test_batches_that_cannot_be_cut_are_refused(batch_size, world_size, found):
    with pytest.raises(InputError, match=found):
        BatchOrder([7] * 10, "p", 0, batch_size, 0, world_size)


def test_starting_in_the_middle_equals_not_stopping():
    order = BatchOrder([7] * 10, "p", 0, 16)
    assert order.batches_per_epoch == 4
    assert list(order.batches(6, 12)) == list(order.batches(0, 12))[6:]
    epoch = [position for batch in order.batches(4, 8) for _, position in batch]
    assert len(set(epoch)) == 64


def test_candidates_are_drawn_uniformly_by_seed_epoch_and_key():
    draws = [
        draw_candidate(0, epoch, f"train_{key:08d}", 8)
        for epoch in range(10)
        for key in range(1000)
    ]
    counts = np.bincount(draws, minlength=8)
    assert abs(counts - 1250).max() < 5 * np.sqrt(1250)
    assert len({draw_candidate(0, epoch, "a", 8) for epoch in range(100)}) == 8


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(InputError, match="batch_size is 256, the set has 10 anchors; lower it"):
        BatchOrder([4, 4, 2], "", seed=0, batch_size=256)
