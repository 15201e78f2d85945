"""Runs that start from given weights, and runs of the schedule wsd that are given more epochs."""

import json
import shutil

import pytest
import torch
from clsp.core import InputError, sha256_file
from clsp.shards import ShardSet
from clsp.train import PretrainConfig, build_method, learning_rate, pretrain
from clsp.train.pretrain import Trainer
from conftest import SMALL_METHOD
from pydantic import ValidationError
from safetensors.torch import load_file

BASE = {
    **SMALL_METHOD,
    "epochs": 3,
    "batch_size": 16,
    "queue_size": 32,
    "warmup_epochs": 1,
    "workers": 0,
    "checkpoint_epochs": 1,
    "trackers": (),
}
WSD = {"schedule": "wsd", "decay_epochs": 1, "keep_checkpoints": 1}


def config(**changes) -> PretrainConfig:
    return PretrainConfig(**{**BASE, **changes})


@pytest.fixture(scope="module")
def shards(shard_set):
    return ShardSet(shard_set)


@pytest.fixture(scope="module")
def first_run(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("first") / "run"
    pretrain(shards, config(epochs=1, seed=7), out)
    return out


def weights(out) -> str:
    return sha256_file(out / "backbone" / "model.safetensors")


def rows(out) -> list[dict]:
    found = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    timed = ("seconds", "waited")
    return [{key: row[key] for key in row if key not in timed} for row in found]


def test_the_rate_of_wsd_is_stable_and_falls_by_a_root():
    wsd = PretrainConfig(
        epochs=100, warmup_epochs=10, lr=0.5, warmup_lr=0.001, schedule="wsd", decay_epochs=20
    )
    rates = [learning_rate(step, 4, wsd) for step in range(401)]
    assert rates[40:321] == [0.5] * 281
    assert rates[320 + 20] == pytest.approx(0.5 * (1 - 0.25**0.5))
    assert rates[400] == 0
    longer = wsd.model_copy(update={"epochs": 300})
    assert [learning_rate(step, 4, longer) for step in range(321)] == rates[:321]
    with pytest.raises(ValidationError, match="needs 30 epochs"):
        PretrainConfig(epochs=29, warmup_epochs=10, schedule="wsd", decay_epochs=20)


@pytest.mark.parametrize("method", ["simclr", "mocov2plus"])
def test_a_finished_run_that_gets_more_epochs_ends_as_one_planned_so(shards, tmp_path, method):
    settings = {**WSD, "method": method, "momentum_start": 0.99, "momentum_end": 0.99}
    planned = config(**settings, epochs=5)
    pretrain(shards, planned, tmp_path / "planned")

    grown = tmp_path / "grown"
    pretrain(shards, config(**settings, epochs=3), grown)
    short = weights(grown)
    pretrain(shards, planned, grown)
    assert weights(grown) == weights(tmp_path / "planned")
    assert rows(grown) == rows(tmp_path / "planned")
    assert json.loads((grown / "run.json").read_text())["pretrain"]["epochs"] == 5

    # What it had come to is still there
    assert sha256_file(grown / "backbone-epoch-3" / "model.safetensors") == short
    assert weights(grown) != short


def test_a_run_that_was_killed_in_its_decay_can_get_more_epochs(shards, tmp_path, monkeypatch):
    planned = config(**WSD, epochs=4)
    pretrain(shards, planned, tmp_path / "planned")
    original = Trainer.step

    def run(self, step, batch):
        if step == 5:  # of 6, the last two in the decay
            raise KeyError
        return original(self, step, batch)

    monkeypatch.setattr(Trainer, "step", run)
    with pytest.raises(KeyError):
        pretrain(shards, config(**WSD, epochs=3), tmp_path / "grown")
    monkeypatch.undo()
    pretrain(shards, planned, tmp_path / "grown")
    assert weights(tmp_path / "grown") == weights(tmp_path / "planned")


def test_more_epochs_are_refused_where_they_would_change_what_was(shards, tmp_path):
    pretrain(shards, config(), tmp_path / "cosine")
    with pytest.raises(InputError, match=r"pretrain.epochs: 3 there, 4 here.*pretrain.init.*wsd"):
        pretrain(shards, config(epochs=4), tmp_path / "cosine")

    # Another change beside the epochs, and a checkpoint that somebody removed
    pretrain(shards, config(**WSD), tmp_path / "wsd")
    with pytest.raises(InputError, match="holds another run"):
        pretrain(shards, config(**WSD, epochs=4, lr=0.1), tmp_path / "wsd")
    with pytest.raises(InputError, match="holds another run"):
        pretrain(shards, config(**WSD, epochs=2), tmp_path / "wsd")
    shutil.rmtree(tmp_path / "wsd" / "checkpoints")
    with pytest.raises(InputError, match="no checkpoint from before its decay"):
        pretrain(shards, config(**WSD, epochs=4), tmp_path / "wsd")
    assert (tmp_path / "wsd" / "backbone").exists()

    # A momentum that rises over the whole run
    with pytest.raises(InputError, match="set momentum_start = momentum_end"):
        pretrain(shards, config(**WSD, method="mocov2plus"), tmp_path / "moco")


@pytest.mark.parametrize("method", ["simclr", "mocov2plus"])
def test_a_run_starts_from_the_weights_of_another(first_run, method):
    """The key encoder too."""
    expected = load_file(first_run / "backbone" / "model.safetensors")
    for name in (first_run, first_run / "backbone"):
        built = build_method(config(init=str(name), method=method))
        modules = [built.backbone]
        if method == "mocov2plus":
            modules.append(built.keys.copies[0])
        for module in modules:
            found = module.state_dict()
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_the_weights_it_starts_from_make_a_run_another(shards, first_run, tmp_path):
    out = tmp_path / "run"
    started = config(init=str(first_run))
    pretrain(shards, started, out)
    assert json.loads((out / "run.json").read_text())["init"] == weights(first_run)

    # The same weights elsewhere are the same run; others or none are not
    moved = tmp_path / "moved"
    shutil.copytree(first_run, moved)
    pretrain(shards, config(init=str(moved)), out)
    with pytest.raises(InputError, match=r"init: .* there"):
        pretrain(shards, config(init=str(out)), out)

    pretrain(shards, config(), tmp_path / "random")
    assert weights(tmp_path / "random") != weights(out)


def test_weights_that_do_not_fit_are_refused_naming_the_first_keys(shards, first_run, tmp_path):
    wider = {"channels": (16, 16, 16, 32), "layers": (1, 1, 1, 1)}
    other = config(init=str(first_run), backbone_kwargs=wider)
    with pytest.raises(InputError, match=r"does not fit pretrain\.backbone \(.*weight: \("):
        pretrain(shards, other, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()

    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no backbone"):
        pretrain(shards, config(init=str(tmp_path / "empty")), tmp_path / "run")
    with pytest.raises(InputError, match="no folder of a run or of a timm model"):
        pretrain(shards, config(init="no_such_model"), tmp_path / "run")
