import numpy as np
import pytest
from clsp.core import InputError
from clsp.shards import ShardSet, contact_sheet, read_scores, verify_set
from clsp.shards.format.layout import scores_path
from clsp.shards.reading.contact_sheet import with_histograms
from clsp.shards.reading.scores import add_scores


def test_scores_are_sealed_and_disturb_nothing(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    before = ShardSet(root)
    values = {
        "cosine": np.random.default_rng(0).random((40, 3), np.float32),
        "agrees": np.zeros((40, 3), np.float32),
    }
    set_id = add_scores(root, "probe", [before.key(i) for i in range(40)], values)
    after = ShardSet(root)
    assert after.set_id == set_id != before.set_id and after.identity == before.identity
    found = read_scores(scores_path(root, "probe"), 40)
    assert all(np.array_equal(found[name], values[name]) for name in values)
    assert verify_set(root, deep=True, expect=set_id) == []
    with pytest.raises(InputError, match="exists"):
        add_scores(root, "probe", [], values)
    with pytest.raises(InputError, match="expected letters"):
        add_scores(root, "../probe", [], values)


def test_scores_of_another_set_are_found(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    keys = [ShardSet(root).key(i) for i in range(40)]
    add_scores(root, "probe", keys[::-1], {"cosine": np.zeros((40, 3))})
    assert "keys are not those" in verify_set(root)[0]


def test_histograms_are_drawn_below_the_sheet(shard_set):
    sheet = contact_sheet(ShardSet(shard_set), 2)
    uniform = np.linspace(0, 1, 4000).reshape(-1, 4)
    whole = np.asarray(with_histograms(sheet, {"probe": {"cosine": uniform}}))
    assert np.array_equal(whole[: sheet.height, : sheet.width], np.asarray(sheet))
    bars = (whole[sheet.height :] == (70, 110, 170)).all(axis=2).sum(axis=0)
    assert (
        len(set(bars[bars > 0])) == 1 and (bars > 0).sum() > 200
    )  # equal counts give bars of one height
