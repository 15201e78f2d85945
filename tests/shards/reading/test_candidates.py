"""Drawing candidates by scores that are known."""

import math

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.shards import BatchOrder, PairDataset, PairLoader, ShardSet, merge_sets
from clsp.shards.reading.candidates import (
    CandidateChoice,
    choice_by_scores,
    draw_candidate,
    draw_candidates,
    kept_candidates,
    mapped_weights,
)
from clsp.shards.reading.measures import MEASURES, Measure, find_measure
from clsp.shards.reading.scores import add_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import rankdata

VALUES = np.tile(np.array([0.1, 0.5, 0.9], np.float32), (40, 1))
VALUES[7] = 0.0  # an anchor that no minimum lets through
VALUES[8] = [0.0, 0.0, 0.7]
OLD_DRAWS = [2, 6, 0, 5, 4, 1, 2, 3, 0, 4]


@pytest.fixture
def scored(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    shards = ShardSet(root)
    add_scores(root, "known", [shards.key(n) for n in range(40)], {"agreement": VALUES}, {})
    return ShardSet(root)


def drawn(choice, shards, epochs=60) -> np.ndarray:
    keys = [shards.key(position) for position in range(40)]
    return np.array(
        [[choice.draw(e, n, key, 3)[0] for n, key in enumerate(keys)] for e in range(epochs)]
    )


def test_only_candidates_at_or_above_the_minimum_are_drawn_and_evenly(scored):
    choice = choice_by_scores(scored, 0, "known", "agreement", 0.5, False)
    found = drawn(choice, scored)
    others = np.delete(found, [7, 8], axis=1)
    assert set(np.unique(others)) == {1, 2} and 0.45 < (others == 1).mean() < 0.55
    assert set(found[:, 8]) == {2}
    assert choice.draw(0, 7, scored.key(7), 3) == (0, 0.0)
    assert choice.draw(0, 8, scored.key(8), 3) == (2, 1.0)


def test_without_a_minimum_the_draw_is_that_without_scores(scored):
    weighted = choice_by_scores(scored, 3, "known", "agreement", None, True)
    plain = PairDataset(scored, 3).choice
    assert np.array_equal(drawn(weighted, scored), drawn(plain, scored))


def test_batches_carry_the_weights_of_what_was_drawn(scored):
    choice = choice_by_scores(scored, 0, "known", "agreement", 0.5, True)
    batch = PairDataset(scored, 0, choice=choice).__getitems__([(2, n) for n in range(40)])
    for position, weight in enumerate(batch.weights_B.tolist()):
        candidate, _ = choice.draw(2, position, scored.key(position), 3)
        assert weight == pytest.approx(0.0 if position == 7 else float(VALUES[position, candidate]))
        expected = scored.candidate(position, candidate).transpose(2, 0, 1)
        assert np.array_equal(batch.candidates_BCHW[position].numpy(), expected)
    assert PairDataset(scored, 0).__getitems__([(2, 7)]).weights_B.tolist() == [1.0]


@pytest.mark.parametrize(
    ("name", "measure", "minimum", "message"),
    [
        ("unknown", "agreement", None, "has scores known, expected unknown"),
        ("known", "cosine", None, "have the measures agreement; expected one of them"),
        ("known", "agreement", 2.0, "no candidate has agreement >= 2.0, the highest is 0.9"),
    ],
)
def test_scores_that_are_not_there_are_bad_input(scored, name, measure, minimum, message):
    with pytest.raises(InputError, match=message):
        choice_by_scores(scored, 0, name, measure, minimum, False)


def test_negative_weights_and_missing_scores_are_bad_input(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    with pytest.raises(InputError, match="has no scores, expected known"):
        choice_by_scores(ShardSet(root), 0, "known", "cosine", None, False)
    keys = [ShardSet(root).key(n) for n in range(40)]
    add_scores(root, "known", keys, {"cosine": -VALUES}, {})
    with pytest.raises(InputError, match="weights must not be negative"):
        choice_by_scores(ShardSet(root), 0, "known", "cosine", None, True)


# What is kept

HIGHER = Measure("margin", "")
LOWER = Measure("anchor_rank", "", better="lower")
TABLES = arrays(
    np.float32,
    st.tuples(st.integers(1, 9), st.integers(1, 8)),
    elements=st.one_of(st.integers(-4, 4), st.just(float("nan"))),  # few values, so many are equal
)


def test_the_known_measures_say_which_end_is_better_and_which_need_labels():
    lower = {name for name, measure in MEASURES.items() if measure.better == "lower"}
    by_labels = {name for name, measure in MEASURES.items() if measure.uses_labels}
    assert lower == {"anchor_rank", "nearest_train", "nearest_test"}
    assert by_labels == {"label_probability", "agreement"}
    assert all(name == measure.name for name, measure in MEASURES.items())
    own = find_measure("sharpness")
    assert (own.better, own.uses_labels) == ("higher", False)


@settings(max_examples=200, deadline=None)
@given(values_NK=TABLES, best=st.integers(1, 8), is_lower=st.booleans())
def test_the_best_of_each_anchor_are_those_of_a_sort_by_hand(values_NK, best, is_lower):
    found_NK = kept_candidates(values_NK, LOWER if is_lower else HIGHER, best)
    for values_K, found_K in zip(values_NK.tolist(), found_NK, strict=True):
        known = [(value, number) for number, value in enumerate(values_K) if not math.isnan(value)]
        known.sort(key=lambda pair: (pair[0] if is_lower else -pair[0], pair[1]))
        assert set(np.flatnonzero(found_K)) == {number for _, number in known[:best]}


@settings(max_examples=200, deadline=None)
@given(
    values_NK=arrays(
        np.float32, st.tuples(st.integers(1, 9), st.integers(1, 8)), elements=st.integers(-9, 9)
    ),
    sixteenths=st.integers(1, 15),
)
def test_a_share_of_the_set_is_numpys_quantile(values_NK, sixteenths):
    """Equal ones stay together, and what numpy would put between two values is at neither."""
    share = sixteenths / 16
    best = kept_candidates(values_NK, HIGHER, share)
    assert np.array_equal(best, values_NK >= np.quantile(values_NK.astype(float), 1 - share))
    lowest = kept_candidates(values_NK, LOWER, share)
    assert np.array_equal(lowest, values_NK <= np.quantile(values_NK.astype(float), share))
    assert best.any() and lowest.any()


def test_a_share_of_different_values_is_that_share_and_equal_ones_are_never_parted():
    values_NK = np.random.default_rng(0).permutation(160).astype(np.float32).reshape(40, 4)
    assert kept_candidates(values_NK, HIGHER, 0.25).sum() == 40
    assert np.array_equal(kept_candidates(values_NK, LOWER, 0.25), values_NK < 40)
    ones_NK = (values_NK >= 100).astype(np.float32)
    assert np.array_equal(kept_candidates(ones_NK, HIGHER, 0.1), ones_NK == 1)


@pytest.mark.parametrize("measure", [HIGHER, LOWER])
def test_a_range_holds_both_of_its_ends_whichever_end_is_better(measure):
    values_NK = np.array([[0.1, 0.7, np.nan], [0.9, np.inf, -np.inf]], np.float32)
    found = [
        kept_candidates(values_NK, measure, keep).tolist()
        for keep in ((0.1, 0.7), (0.7, 1e300), (-math.inf, 0.1))
    ]
    assert found == [
        [[True, True, False], [False, False, False]],
        [[False, True, False], [True, True, False]],
        [[True, False, False], [False, False, True]],
    ]


def test_one_kept_candidate_is_drawn_in_every_epoch(scored):
    choice = choice_by_scores(scored, 0, "known", "agreement", keep=1)
    found = drawn(choice, scored)
    assert set(found[:, 7]) == {0}  # all are equal: the first
    assert (np.delete(found, 7, axis=1) == 2).all()
    assert choice.draw(3, 7, scored.key(7), 3) == (0, 1.0)


def test_a_minimum_and_what_is_kept_hold_both(scored):
    choice = choice_by_scores(scored, 0, "known", "agreement", 0.6, keep=2)
    assert set(drawn(choice, scored)[:, 0]) == {2}
    assert choice.draw(0, 7, scored.key(7), 3) == (0, 0.0)
    assert choice.summary == (
        "39 of 120 candidates may be drawn; 1 of 40 anchors have none and take no part"
    )
    with pytest.raises(InputError, match=r"agreement >= 0.6 and is kept by keep = \(0.0, 0.5\)"):
        choice_by_scores(scored, 0, "known", "agreement", 0.6, keep=(0.0, 0.5))


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (4, r"keep = 4: the set .* has 3 candidates per anchor; keep at most these"),
        ((2.0, math.inf), r"in keep = \[2.0, inf\]; the values go from 0 to 0.9, widen it"),
    ],
)
def test_what_cannot_be_kept_is_bad_input(scored, keep, message):
    with pytest.raises(InputError, match=message):
        choice_by_scores(scored, 0, "known", "agreement", keep=keep)
    assert choice_by_scores(scored, 0, "known", "agreement", keep=3).allowed_NK.all()


def test_a_measure_without_any_value_chooses_nothing(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    keys = [ShardSet(root).key(n) for n in range(40)]
    add_scores(root, "empty", keys, {"margin": np.full((40, 3), np.nan)}, {})
    for keep in (1, 0.5, (0.0, 1.0)):
        with pytest.raises(InputError, match="no candidate has a value of margin"):
            choice_by_scores(ShardSet(root), 0, "empty", "margin", keep=keep)


def test_scores_of_another_set_or_of_fewer_candidates_are_bad_input(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    keys = [ShardSet(root).key(n) for n in range(40)]
    add_scores(root, "turned", keys[::-1], {"margin": VALUES}, {})
    add_scores(root, "half", keys[:19], {"margin": VALUES[:19]}, {})
    add_scores(root, "few", keys, {"margin": VALUES[:, :2]}, {})
    for name, message in {
        "turned": "keys are not those of the set, so these are scores of another set; score .* another name",
        "half": "57 rows, no multiple of the 40 anchors, so these are scores of another set",
        "few": "scores few are of 2 candidates, the set has 3; score it again under another name",
    }.items():
        with pytest.raises(InputError, match=message):
            choice_by_scores(ShardSet(root), 0, name, "margin", keep=1)


@pytest.mark.parametrize("keep", [1, 2, 0.5, (0.2, 0.8)])
def test_any_number_of_processes_and_workers_draws_the_same_candidates(make_set, tmp_path, keep):
    root = make_set(tmp_path / "set")
    values = np.random.default_rng(1).random((40, 3)).astype(np.float32)
    add_scores(root, "random", [ShardSet(root).key(n) for n in range(40)], {"margin": values}, {})

    def read(world_size: int, workers: int) -> dict[tuple[int, str], tuple]:
        """What each key got in each of three epochs: pixels and weight."""
        found = {}
        for rank in range(world_size):
            shards = ShardSet(root)
            choice = choice_by_scores(
                shards, 5, "random", "margin", keep=keep, weighted=True, weight_map="rank"
            )
            order = BatchOrder(shards.shard_sizes, shards.plan.digest, 5, 20, rank, world_size)
            loader = PairLoader(PairDataset(shards, 5, choice=choice), order, 6, workers=workers)
            for number, batch in enumerate(loader):
                images = batch.candidates_BCHW.numpy()
                for key, image, weight in zip(batch.keys, images, batch.weights_B, strict=True):
                    found[number // 2, key] = (image.tobytes(), float(weight))

        return found

    alone = read(1, 0)
    assert len(alone) == 3 * 40
    assert read(2, 0) == alone
    assert read(1, 2) == alone
    assert read(4, 1) == alone


# What a candidate counts


@settings(max_examples=100, deadline=None)
@given(values_NK=TABLES, is_lower=st.booleans())
def test_ranks_are_scipys_and_every_map_is_monotone(values_NK, is_lower):
    known_NK = ~np.isnan(values_NK)
    measure = LOWER if is_lower else HIGHER
    signed_NK = np.where(known_NK, -values_NK if is_lower else values_NK, -np.inf)
    expected = rankdata(signed_NK, method="max", axis=None).reshape(values_NK.shape)
    ranks_NK = mapped_weights(values_NK, measure, "rank")
    np.testing.assert_allclose(ranks_NK, np.where(known_NK, expected / expected.size, 0), rtol=1e-6)

    if known_NK.any():
        assert ranks_NK.max() == 1
        for weights_NK in (ranks_NK, mapped_weights(values_NK, measure, "exp")):
            order = np.argsort(signed_NK, axis=None, kind="stable")
            assert (np.diff(weights_NK.ravel()[order]) >= 0).all()
            assert ((weights_NK > 0) == known_NK).all() and weights_NK.max() == 1


def test_exp_counts_the_better_half_fully_and_fades_out_the_rest():
    values_NK = np.array([[1.0, 2.0, 4.0], [8.0, 3.0, 6.0]], np.float32)
    median, deviation = 3.5, np.std([1, 2, 4, 8, 3, 6])
    higher = [
        [math.exp((v - median) / deviation) if v < median else 1 for v in row] for row in values_NK
    ]
    lower = [
        [math.exp((median - v) / deviation) if v > median else 1 for v in row] for row in values_NK
    ]
    np.testing.assert_allclose(mapped_weights(values_NK, HIGHER, "exp"), higher, rtol=1e-6)
    np.testing.assert_allclose(mapped_weights(values_NK, LOWER, "exp"), lower, rtol=1e-6)
    equal_NK = np.full((2, 2), 7, np.float32)
    assert (mapped_weights(equal_NK, LOWER, "exp") == 1).all()


def test_weights_that_would_be_the_wrong_way_round_or_are_none_are_bad_input(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    keys = [ShardSet(root).key(n) for n in range(40)]
    infinite = VALUES.copy()
    infinite[3, 1] = np.inf
    measures = {
        "anchor_rank": VALUES + 1,
        "margin": VALUES - 0.3,
        "own": infinite,
        "zero": 0 * VALUES,
    }
    add_scores(root, "known", keys, measures, {})

    def weights(measure, **settings):
        return choice_by_scores(
            ShardSet(root), 0, "known", measure, weighted=True, **settings
        ).weights_NK

    with pytest.raises(InputError, match="anchor_rank itself would count the worst .* most"):
        weights("anchor_rank")
    with pytest.raises(InputError, match="margin goes down to -0.3; weights must not be negative"):
        weights("margin")
    for weight_map in ("value", "exp"):
        with pytest.raises(InputError, match="own has infinite values; set weight_map to rank"):
            weights("own", weight_map=weight_map)

    with pytest.raises(InputError, match="zero is 0 for every candidate .* none would count"):
        weights("zero")

    assert weights("anchor_rank", weight_map="rank")[0].argmax() == 0
    assert weights("own", weight_map="rank").max() == 1
    above = weights("margin", keep=(0.0, math.inf))  # what is left can weigh
    np.testing.assert_allclose(above[0, 1:], VALUES[0, 1:] - 0.3, rtol=1e-6)


# Sets of several weights of the interpolation


def test_each_anchor_gets_its_best_candidate_of_sets_of_several_weights(make_set, tmp_path):
    """Sets with another `sampler.weight` are merged and scored; `keep = 1` is then a weight per anchor."""
    near = ShardSet(make_set(tmp_path / "near", {"weight": 0.1}, candidates=1))
    far = ShardSet(make_set(tmp_path / "far", {"weight": 0.9}, candidates=1))
    merge_sets(near, far, tmp_path / "both")
    both = ShardSet(tmp_path / "both")
    assert both.candidates == 2
    assert any(
        both.candidate_bytes(n, 0) != both.candidate_bytes(n, 1) for n in range(40)
    )  # or nothing is to be chosen

    keys = [both.key(n) for n in range(40)]
    margins = np.random.default_rng(2).normal(size=(40, 2)).astype(np.float32)
    add_scores(both.root, "probe", keys, {"margin": margins}, {})
    both = ShardSet(tmp_path / "both")
    choice = choice_by_scores(both, 0, "probe", "margin", keep=1)
    batch = PairDataset(both, 0, choice=choice).__getitems__([(4, n) for n in range(40)])

    is_far = margins[:, 1] > margins[:, 0]
    assert 10 < is_far.sum() < 30
    for position in range(40):
        chosen = far if is_far[position] else near
        expected = chosen.candidate(position, 0).transpose(2, 0, 1)
        assert np.array_equal(batch.candidates_BCHW[position].numpy(), expected)


# Several candidates at a time


def test_several_are_different_and_every_order_is_equally_likely():
    found = [tuple(draw_candidates(3, epoch, "a", 4, 2)) for epoch in range(6000)]
    counts = {pair: found.count(pair) for pair in set(found)}
    assert set(counts) == {(i, j) for i in range(4) for j in range(4) if i != j}
    # chi-squared of 11 degrees of freedom: above 31.3 in one of a thousand
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 31.3


def test_more_of_them_leave_the_earlier_ones_as_they_are():
    for epoch in range(20):
        most = draw_candidates(0, epoch, "a", 8, 8)
        assert sorted(most) == list(range(8)) and most[0] == draw_candidate(0, epoch, "a", 8)
        assert all(draw_candidates(0, epoch, "a", 8, count) == most[:count] for count in (1, 3, 7))


def test_one_candidate_is_the_draw_of_old():
    """Computed by a version that drew one only: seed 5, epochs 0 to 9, `train_00000003`, K = 8."""
    choice = CandidateChoice(5)
    found = [choice.draw_several(e, 3, "train_00000003", 8, 1) for e in range(10)]
    assert found == [([number], [1.0]) for number in OLD_DRAWS]
    assert [choice.draw(e, 3, "train_00000003", 8) for e in range(10)] == [
        (number, 1.0) for number in OLD_DRAWS
    ]


def test_a_sample_with_fewer_allowed_ones_takes_those_there_are():
    """Places that are left have weight 0, and a mean over all places is the mean over the different candidates."""
    allowed = np.array(
        [[True, False, True, False], [True] * 4, [False] * 4, [False, True, False, False]]
    )
    weights = np.array([[0.2, 9, 0.6, 9], [0.1, 0.2, 0.3, 0.4], [1, 1, 1, 1], [9, 0.0, 9, 9]])
    choice = CandidateChoice(0, allowed, weights)
    for epoch in range(10):
        numbers, found = choice.draw_several(epoch, 0, "a", 4, 3)
        assert set(numbers) == {0, 2} and found[2] == 0
        assert found[:2] == pytest.approx([weights[0, number] * 3 / 2 for number in numbers[:2]])
        assert np.mean(found) == pytest.approx((0.2 + 0.6) / 2)
        numbers, found = choice.draw_several(epoch, 1, "b", 4, 3)
        assert len(set(numbers)) == 3
        assert found == pytest.approx([weights[1, number] for number in numbers])
        assert choice.draw_several(epoch, 2, "c", 4, 3) == ([0, 0, 0], [0.0, 0.0, 0.0])
        assert choice.draw_several(epoch, 3, "d", 4, 3) == ([1, 1, 1], [0.0, 0.0, 0.0])


def test_batches_of_several_hold_the_images_and_weights_that_were_drawn(scored):
    choice = choice_by_scores(scored, 0, "known", "agreement", 0.5, True)
    pairs = PairDataset(scored, 0, choice=choice, count=2)
    batch = pairs.__getitems__([(2, n) for n in range(40)])
    assert batch.candidates_BCHW.shape == (40, 2, 3, 8, 8) and batch.weights_B.shape == (40, 2)
    for position in range(40):
        numbers, weights = choice.draw_several(2, position, scored.key(position), 3, 2)
        assert batch.weights_B[position].tolist() == pytest.approx(weights)
        for place, number in enumerate(numbers):
            expected = scored.candidate(position, number).transpose(2, 0, 1)
            assert np.array_equal(batch.candidates_BCHW[position, place].numpy(), expected)
    one = PairDataset(scored, 0, choice=choice).__getitems__([(2, n) for n in range(40)])
    normal = [n for n in range(40) if n not in (7, 8)]  # of which two candidates are allowed
    assert torch.equal(one.candidates_BCHW[normal], batch.candidates_BCHW[normal, 0])


def test_more_than_there_are_cannot_be_drawn(shard_set):
    shards = ShardSet(shard_set)
    PairDataset(shards, 0, count=3)
    with pytest.raises(InputError, match=r"4 different .* has 3; ask for fewer, or make more"):
        PairDataset(shards, 0, count=4)
    PairDataset(shards, 0, with_candidates=False, count=4)
