import json
import os
import shutil
import signal

import pytest
import torch
from clsp.core import InputError, StopRequested, WorkError, sha256_file
from clsp.shards import ShardSet, merge_sets
from clsp.train import METHODS, PretrainConfig, layers_used, pretrain
from clsp.train.pretrain import Trainer
from conftest import SMALL_METHOD, SMALL_NETWORKS, settings

BASE = {
    **SMALL_METHOD,
    "epochs": 3,
    "batch_size": 16,
    "queue_size": 32,
    "warmup_epochs": 1,
    "workers": 0,
}
BASE["checkpoint_epochs"] = 2


def config(**changes) -> PretrainConfig:
    return PretrainConfig(**{**BASE, **changes})


@pytest.fixture(scope="module")
def shards(shard_set):
    return ShardSet(shard_set)


def weights(out) -> str:
    return sha256_file(out / "backbone" / "model.safetensors")


def losses(out) -> list[dict]:
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [
        {key: value for key, value in row.items() if key not in ("seconds", "waited")}
        for row in rows
    ]


def stop_at(step_to_stop: int, monkeypatch, kill: bool = False) -> None:
    """Send SIGTERM during a step, or end it as a crash would."""
    original = Trainer.step

    def run(self, step, batch):
        if step == step_to_stop:
            if kill:
                raise CrashError
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, batch)

    monkeypatch.setattr(Trainer, "step", run)


class CrashError(Exception):
    pass


def test_progress_is_told_after_every_step_with_the_losses_of_the_last_epoch(shards, tmp_path):
    told = []
    pretrain(shards, config(epochs=2), tmp_path, report=lambda *progress: told.append(progress))

    per_epoch = len(shards) // BASE["batch_size"]
    assert [progress[:2] for progress in told] == [
        (done, 2 * per_epoch) for done in range(1, 2 * per_epoch + 1)
    ]
    first, second = (row["loss"] for row in losses(tmp_path))
    assert told[0][2] == {}
    assert [told[step][2]["loss"] for step in (per_epoch - 1, per_epoch, -1)] == [
        first,
        first,
        second,
    ]


def test_a_second_run_is_kept_out_of_a_folder(shards, tmp_path):
    refused = []

    def start_another(*progress):
        with pytest.raises(InputError, match=f"another process works in {tmp_path}; wait") as error:
            pretrain(shards, config(), tmp_path)
        refused.append(error)

    pretrain(shards, config(), tmp_path, report=start_another)
    assert [row["epoch"] for row in losses(tmp_path)] == [1, 2, 3]
    assert len(refused) == 3 * (len(shards) // BASE["batch_size"])


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "batch_norm": "joint",
            "optimizer": "lars",
            "synthetic": {"probability": 0.5, "warmup": 2},
        },
        {"optimizer": "adamw", "synthetic": {"source": "inflation"}, "accumulation": 2},
        {"synthetic": {"candidates": 2, "loss": "multi_positive"}, "accumulation": 2},
    ],
    ids=["sgd-per-view", "lars-joint", "adamw-inflation-accumulation", "several-accumulation"],
)
@pytest.mark.parametrize("kill", [False, True], ids=["stopped", "crashed"])
def test_stopping_and_resuming_equals_not_stopping_bit_for_bit(
    shards, tmp_path, monkeypatch, method, changes, kill
):
    rate = 0.05 if method == "vicreg" else 0.5  # not on the sphere, it diverges at more
    chosen = config(method=method, lr=rate, **changes)
    pretrain(shards, chosen, tmp_path / "whole")
    stop_at(2, monkeypatch, kill)  # in the middle of the second of three epochs
    with pytest.raises(CrashError if kill else StopRequested):
        pretrain(shards, chosen, tmp_path / "parts")
    monkeypatch.undo()
    assert not (tmp_path / "parts" / "backbone").exists()
    steps = [] if kill else ["step-000000003.safetensors"]
    assert [path.name for path in (tmp_path / "parts").glob("checkpoints/*")] == steps
    pretrain(shards, chosen, tmp_path / "parts")
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_lambda_zero_and_no_source_are_the_baseline(shards, tmp_path):
    found = {}
    for name, synthetic in {
        "none": {"source": "none"},
        "zero": {"weight": 0.0},
        "on": {"weight": 1.0},
    }.items():
        chosen = config(epochs=1, synthetic=synthetic)
        pretrain(shards, chosen, tmp_path / name)
        found[name] = (weights(tmp_path / name), chosen.run_name)
    assert found["none"] == found["zero"] != found["on"]
    assert [name for _, name in found.values()] == ["simclr", "simclr", "simclr+shards"]


def test_running_statistics_come_from_real_views_only(shards, tmp_path):
    """Candidates of another brightness must not show in the kept statistics of the first layer."""
    from clsp.train import build_method

    torch.manual_seed(0)
    real, bright = torch.randn(16, 3, 8, 8), torch.randn(16, 3, 8, 8) + 100
    states = []
    for third in (None, bright):
        torch.manual_seed(1)
        method = build_method(config()).train()
        method([real, real], third, None, -torch.ones(16))
        states.append(method.backbone.bn1.running_mean.clone())
    assert torch.equal(*states)
    torch.manual_seed(1)
    joint = build_method(config(batch_norm="joint")).train()
    joint([real, real], bright, None, -torch.ones(16))
    assert not torch.allclose(joint.backbone.bn1.running_mean, states[0], atol=1e-2)


def test_only_the_last_checkpoints_stay(shards, tmp_path):
    pretrain(shards, config(keep_checkpoints=2), tmp_path / "run")
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == [
        "step-000000004.safetensors",
        "step-000000006.safetensors",
    ]


def test_the_folder_of_another_run_is_refused(shards, tmp_path):
    pretrain(shards, config(epochs=1), tmp_path / "run")
    before = weights(tmp_path / "run")
    with pytest.raises(InputError, match=r"seed: 0 there, 1 here"):
        pretrain(shards, config(epochs=1, seed=1), tmp_path / "run")
    with pytest.raises(InputError, match="lr: 0.5 there, 0.1 here"):
        pretrain(shards, config(epochs=1, lr=0.1), tmp_path / "run")
    pretrain(shards, config(epochs=1, workers=1), tmp_path / "run")
    assert weights(tmp_path / "run") == before


def test_a_run_without_a_checkpoint_makes_way_for_corrected_settings(shards, tmp_path, caplog):
    out = tmp_path / "run"
    chosen = {"epochs": 1, "trackers": ["tensorboard"]}
    with pytest.raises(WorkError, match=r"last good checkpoint is none; .* the same --out"):
        wrong = config(**chosen, lr=1e30, warmup_epochs=0)
        pretrain(shards, wrong, out, recipe=b"wrong")
    left = (out / "run.json").read_bytes()

    pretrain(shards, config(**chosen), out, recipe=b"right")
    pretrain(shards, config(**chosen), tmp_path / "alone")
    assert weights(out) == weights(tmp_path / "alone")
    assert losses(out) == losses(tmp_path / "alone")
    assert (out / "run.json").read_bytes() == (tmp_path / "alone" / "run.json").read_bytes()
    assert (out / "recipe.toml").read_bytes() == b"right"

    # Nothing is lost, and no curve is mixed with another
    aside = out / "stopped-1"
    assert (aside / "run.json").read_bytes() == left
    assert (aside / "recipe.toml").read_bytes() == b"wrong"
    for folder in (out, aside):
        assert len(list((folder / "tensorboard").glob("events.*"))) == 1
    assert f"is now in {aside}" in caplog.text


def test_a_run_with_a_checkpoint_makes_no_way(shards, tmp_path, monkeypatch):
    stop_at(2, monkeypatch)
    with pytest.raises(StopRequested):
        pretrain(shards, config(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"lr: 0.5 there, 0.1 here"):
        pretrain(shards, config(lr=0.1), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_run_that_makes_way_leaves_its_layers_behind(make_set, tmp_path, monkeypatch):
    root = make_set(tmp_path / "set", candidates=2)
    stop_at(0, monkeypatch, kill=True)
    with pytest.raises(CrashError):
        pretrain(ShardSet(root), config(), tmp_path / "run")
    assert (tmp_path / "run" / "run.json").exists()
    assert layers_used(tmp_path / "run") is None


def test_the_recipe_of_a_command_that_is_kept_out_is_not_written(shards, shard_set, clsp, tmp_path):
    out = tmp_path / "run"
    refused = []

    def start_another(step, *progress):
        if step > 1:  # only before the first checkpoint it could make way
            return
        small = settings({**SMALL_NETWORKS, "pretrain.lr": 0.1})
        found = clsp("pretrain", "--recipe", "digits", *small, "--shards", shard_set, "--out", out)
        assert found.returncode == 2 and "another process works in" in found.stderr
        refused.append((out / "recipe.toml").read_bytes())

    pretrain(shards, config(epochs=2), out, start_another, recipe=b"the first")
    assert refused == [b"the first"] == [(out / "recipe.toml").read_bytes()]


def test_a_loss_that_is_not_finite_stops_with_step_and_keys(shards, tmp_path):
    pretrain(shards, config(epochs=1), tmp_path / "good")
    with pytest.raises(
        WorkError, match=r"at step \d+ \(anchors train_.*last good checkpoint is none"
    ):
        pretrain(shards, config(lr=1e30, warmup_epochs=0), tmp_path / "bad")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "batch_size is 64, the set .* has 40 anchors"),
        ({"method": "simclrr"}, "no method 'simclrr'"),
    ],
)
def test_bad_settings_are_refused(shards, tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        pretrain(shards, config(**changes), tmp_path / "run")


def test_a_checkpoint_of_another_model_is_refused(shards, tmp_path, monkeypatch):
    stop_at(4, monkeypatch)
    for name, width in (("a", 8), ("b", 16)):
        with pytest.raises(StopRequested):
            pretrain(shards, config(projector_out=width), tmp_path / name)
    monkeypatch.undo()
    shutil.rmtree(tmp_path / "b" / "checkpoints")
    shutil.copytree(tmp_path / "a" / "checkpoints", tmp_path / "b" / "checkpoints")
    with pytest.raises(InputError, match="does not fit this run"):
        pretrain(shards, config(projector_out=16), tmp_path / "b")


def test_a_run_goes_on_reading_its_layers_when_the_set_has_grown(make_set, tmp_path, monkeypatch):
    root = make_set(tmp_path / "set", candidates=2)
    other = make_set(tmp_path / "other", {"seed": 5}, candidates=2)
    pretrain(ShardSet(root), config(), tmp_path / "straight")
    with monkeypatch.context() as patch:
        stop_at(3, patch)
        with pytest.raises(StopRequested):
            pretrain(ShardSet(root), config(), tmp_path / "run")
    merge_sets(ShardSet(root), ShardSet(other), tmp_path / "grown")
    grown = ShardSet(tmp_path / "grown", layers=layers_used(tmp_path / "run"))
    assert ShardSet(tmp_path / "grown").candidates == 4 and grown.candidates == 2
    pretrain(grown, config(), tmp_path / "run")
    assert weights(tmp_path / "run") == weights(tmp_path / "straight")
    with pytest.raises(InputError, match=r"another run \(data\.plan"):
        pretrain(ShardSet(other), config(), tmp_path / "run")


def test_settings_in_the_environment_change_no_weights(
    shards, tmp_path, monkeypatch, caplog, forget_precision
):
    chosen = config(epochs=1)
    pretrain(shards, chosen, tmp_path / "plain")
    asked = {
        "ACCELERATE_MIXED_PRECISION": "bf16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
        "ACCELERATE_DYNAMO_BACKEND": "EAGER",
    }
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    forget_precision()
    caplog.clear()
    pretrain(shards, chosen, tmp_path / "asked")
    assert weights(tmp_path / "asked") == weights(tmp_path / "plain")
    (line,) = [record.getMessage() for record in caplog.records if "ignored" in record.msg]
    assert all(f"{name}={value}" in line for name, value in asked.items()), line


def test_what_accelerate_launch_sets_by_itself_is_no_matter(
    shards, tmp_path, monkeypatch, caplog, forget_precision
):
    defaults = {"MIXED_PRECISION": "no", "DYNAMO_BACKEND": "NO", "DYNAMO_MODE": "default"}
    for name, value in {**defaults, "DYNAMO_USE_FULLGRAPH": "False"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    forget_precision()
    pretrain(shards, config(epochs=1, precision="bf16"), tmp_path / "run")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    forget_precision()
    pretrain(shards, config(epochs=1, precision="bf16"), tmp_path / "again")
    assert not [record for record in caplog.records if "ignored" in record.msg]


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "PARALLELISM_CONFIG"])
def test_other_engines_are_refused(shards, tmp_path, monkeypatch, engine):
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(InputError, match=f"ACCELERATE_USE_{engine}.*launch it without"):
        pretrain(shards, config(epochs=1), tmp_path / "run")
