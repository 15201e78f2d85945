"""Runs that choose their candidates by a measure: what they may go by, what they are called, and what resumes them."""

import json
import math

import numpy as np
import pytest
from clsp.core import InputError, StopRequested, canonical_json, sha256_file
from clsp.core.run_name import RunName
from clsp.shards import BatchOrder, ShardSet
from clsp.shards.reading.scores import add_scores
from clsp.train import METHODS, PretrainConfig, SyntheticConfig, check_run, pretrain
from clsp.train.build import pair_loader
from clsp.train.pretrain import Trainer
from clsp.train.run_record import recorded_name
from conftest import SMALL_METHOD
from pydantic import ValidationError

BASE = {
    **SMALL_METHOD,
    "epochs": 2,
    "batch_size": 16,
    "queue_size": 32,
    "warmup_epochs": 1,
    "workers": 0,
}
EARLIER = {
    "weight": 1.0,
    "source": "shards",
    "probability": 1.0,
    "warmup": 0.0,
    "real_weight": 10.0,
    "scores": "",
    "measure": "agreement",
    "minimum": None,
    "weighted": False,
}
"""What versions without `keep` recorded of a run with the defaults."""
BY_LABELS = {"scores": "probe", "measure": "agreement", "minimum": 0.5}


def config(synthetic=None, **changes) -> PretrainConfig:
    return PretrainConfig(**{**BASE, **changes}, synthetic=synthetic or {})


def order(shards: ShardSet) -> BatchOrder:
    return BatchOrder(shards.shard_sizes, shards.plan.digest, 0, 16)


@pytest.fixture
def scored(make_set, tmp_path):
    """A function that makes a set and scores it, by the same name from a seed of its own."""

    def make(name: str, seed: int = 0) -> ShardSet:
        root = make_set(tmp_path / name)
        dice = np.random.default_rng(seed)
        measures = {
            "margin": dice.normal(size=(40, 3)),
            "anchor_rank": dice.integers(1, 41, (40, 3)),
            "agreement": dice.integers(0, 2, (40, 3)),
        }
        add_scores(root, "probe", map(ShardSet(root).key, range(40)), measures)
        return ShardSet(root)

    return make


# What they may go by


@pytest.mark.parametrize(
    ("source", "use"),
    [
        ("shards", {"keep": 1}),
        ("shards", {"minimum": 0.5}),
        ("shards", {"weighted": True}),
        ("inflation", {"keep": 0.5}),
    ],
)
def test_labels_choose_no_candidate_without_permission(scored, source, use):
    shards = scored("set")
    chosen = {"scores": "probe", "measure": "agreement", "source": source, **use}
    with pytest.raises(InputError) as error:
        pair_loader(shards, config(chosen), order(shards))
    message = str(error.value)
    assert "pretrain.synthetic.measure = agreement uses labels" in message
    assert "margin, anchor_rank or cosine" in message and "allow_labels=true" in message
    assert "\n" not in message

    allowed = config({**chosen, "allow_labels": True})
    assert pair_loader(shards, allowed, order(shards)).dataset.choice is not None
    assert allowed.run_name == f"simclr+{source}+labels"


def test_a_method_with_labels_needs_no_permission(scored):
    shards = scored("set")
    for method in METHODS:
        chosen = config(BY_LABELS, method=method)
        if method == "supcon":
            pair_loader(shards, chosen, order(shards))
        else:
            with pytest.raises(InputError, match="agreement uses labels"):
                pair_loader(shards, chosen, order(shards))


@pytest.mark.parametrize("measure", ["margin", "anchor_rank"])
def test_measures_without_labels_need_none_and_leave_the_name(scored, measure):
    shards = scored("set")
    chosen = config({"scores": "probe", "measure": measure, "keep": 1})
    choice = pair_loader(shards, chosen, order(shards)).dataset.choice
    assert (choice.allowed_NK.sum(axis=1) == 1).all()
    assert chosen.run_name == "simclr+shards"


@pytest.mark.parametrize(
    ("synthetic", "name"),
    [
        ({"allow_labels": True}, "simclr+shards"),
        ({"allow_labels": True, "scores": "probe", "measure": "agreement"}, "simclr+shards"),
        ({**BY_LABELS, "allow_labels": True}, "simclr+shards+labels"),
        ({**BY_LABELS, "measure": "label_probability"}, "simclr+shards+labels"),
        ({**BY_LABELS, "measure": "sharpness"}, "simclr+shards"),
        ({**BY_LABELS, "source": "augmentation"}, "simclr+augmentation"),
        ({**BY_LABELS, "weight": 0.0}, "simclr"),
    ],
)
def test_the_name_says_it_where_labels_are_really_used(synthetic, name):
    found = config(synthetic).run_name
    assert found == name
    assert str(RunName.parse(found)) == found


def test_margin_is_the_default_measure():
    assert SyntheticConfig(scores="probe", keep=1).measure == "margin"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keep": 2}, "synthetic.keep, .* need synthetic.scores"),
        ({"scores": "probe", "weight_map": "rank"}, "weight_map = rank maps no weights"),
        ({"scores": "probe", "keep": 1.0}, "found 1.0, expected a whole number >= 1"),
        ({"scores": "probe", "keep": True}, "found True, expected a whole number >= 1"),
        ({"scores": "probe", "keep": (0.9, 0.1)}, r"found \[0.9, 0.1\], .* low <= high"),
        ({"scores": "probe", "keep": (math.nan, 1)}, "low <= high"),
    ],
)
def test_settings_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        SyntheticConfig(**settings)


def test_more_candidates_than_there_are_cannot_be_kept(scored):
    shards = scored("set")
    with pytest.raises(InputError, match="keep = 4: .* has 3 candidates per anchor"):
        pair_loader(shards, config({"scores": "probe", "keep": 4}), order(shards))


# What identifies and resumes them


def test_records_of_runs_that_go_by_nothing_are_as_before():
    assert SyntheticConfig().recorded() == EARLIER
    assert SyntheticConfig(allow_labels=True).recorded() == EARLIER
    assert SyntheticConfig(measure="cosine").recorded() == {**EARLIER, "measure": "cosine"}
    by_labels = SyntheticConfig(**BY_LABELS, allow_labels=True)
    assert by_labels.recorded() == {**EARLIER, **BY_LABELS}


@pytest.mark.parametrize("keep", [1, 0.5, (0.1, 0.9), (0.0, math.inf), (-math.inf, 3.0)])
def test_what_is_kept_survives_its_record(keep):
    chosen = SyntheticConfig(scores="probe", keep=keep, weighted=True, weight_map="rank")
    record = json.loads(canonical_json(chosen.recorded()))
    assert record["measure"] == "margin"
    found = SyntheticConfig.from_record(record)
    assert found == chosen and type(found.keep) is type(keep)


def stop_at(step_to_stop: int, monkeypatch) -> None:
    original = Trainer.step

    def run(self, step, batch):
        if step == step_to_stop:
            raise StopRequested
        return original(self, step, batch)

    monkeypatch.setattr(Trainer, "step", run)


def begun(shards, chosen, out, monkeypatch) -> None:
    """Begin a run and stop it behind its first epoch."""
    stop_at(2, monkeypatch)
    with pytest.raises(StopRequested):
        pretrain(shards, chosen, out)
    monkeypatch.undo()


def weights(out) -> str:
    return sha256_file(out / "backbone" / "model.safetensors")


def test_a_run_by_labels_of_an_earlier_version_goes_on_once_it_is_allowed(
    scored, tmp_path, monkeypatch
):
    shards = scored("set")
    chosen = config({**BY_LABELS, "allow_labels": True}, checkpoint_epochs=1)
    pretrain(shards, chosen, tmp_path / "whole")
    begun(shards, chosen, tmp_path / "parts", monkeypatch)

    # As a version without permission, mark and digest wrote it
    path = tmp_path / "parts" / "run.json"
    record = json.loads(path.read_text())
    assert record["name"] == "simclr+shards+labels"
    assert record["pretrain"]["synthetic"] == {**EARLIER, **BY_LABELS}
    record["name"] = "simclr+shards"
    del record["scores"]
    path.write_bytes(canonical_json(record))

    with pytest.raises(InputError, match="measure: agreement there, margin here"):
        check_run(shards, config({"scores": "probe", "minimum": 0.5}), tmp_path / "parts")
    with pytest.raises(InputError, match="agreement uses labels"):
        pretrain(shards, config(BY_LABELS), tmp_path / "parts")
    pretrain(shards, chosen, tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")

    # Tables call it by its new name, without a change to its record
    assert json.loads(path.read_text()) == record
    assert recorded_name(record) == "simclr+shards+labels"


def test_a_run_of_an_earlier_version_that_went_by_nothing_is_the_same_run(shard_set, tmp_path):
    shards = ShardSet(shard_set)
    pretrain(shards, config(epochs=1), tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    record = json.loads(path.read_text())
    assert record["pretrain"]["synthetic"] == EARLIER and "scores" not in record
    assert check_run(shards, config({"allow_labels": True}, epochs=1), tmp_path / "run")
    with pytest.raises(InputError, match="keep: None there, 2 here"):
        check_run(shards, config({"scores": "probe", "keep": 2}, epochs=1), tmp_path / "run")


def test_scores_of_another_encoder_do_not_resume_a_run(scored, tmp_path, monkeypatch):
    """A copy of the set that somebody else scored has other scores under the name."""
    chosen = config({"scores": "probe", "keep": 1}, checkpoint_epochs=1)
    shards = scored("set")
    begun(shards, chosen, tmp_path / "run", monkeypatch)
    elsewhere = scored("elsewhere", seed=1)
    with pytest.raises(
        InputError, match=r"holds another run \(scores: \w{64} there, \w{64} here\)"
    ):
        pretrain(elsewhere, chosen, tmp_path / "run")
    pretrain(shards, chosen, tmp_path / "run")


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"name": "simclr", "seed": 0}, "simclr"),
        ({"name": "a+b+labels"}, "a+b+labels"),
        ({"name": "simclr+shards", "pretrain": {"synthetic": EARLIER}}, "simclr+shards"),
        ({"name": "simclr", "pretrain": {"synthetic": {**EARLIER, **BY_LABELS}}}, "simclr"),
        ({"name": "x+shards+labels", "pretrain": {"synthetic": {"later": 1}}}, "x+shards+labels"),
    ],
)
def test_names_of_other_records_are_theirs(record, name):
    assert recorded_name(record) == name
