"""Drawing candidates by scores that are known."""

import numpy as np
import pytest
from clsp.core import InputError
from clsp.shards import PairDataset, ShardSet
from clsp.shards.reading.candidates import choice_by_scores
from clsp.shards.reading.scores import add_scores

VALUES = np.tile(np.array([0.1, 0.5, 0.9], np.float32), (40, 1))
VALUES[7] = 0.0  # an anchor that no minimum lets through
VALUES[8] = [0.0, 0.0, 0.7]


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
