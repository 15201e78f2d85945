"""A training step makes the host wait for nothing, and a loss that is not finite is named all the same."""

import importlib
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from clsp.core import WorkError
from clsp.shards import BatchOrder, PairBatch, ShardSet
from clsp.train import METHODS, PretrainConfig, pretrain
from clsp.train.build import build_optimizer, prepared_method
from clsp.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from clsp.train.inputs import InputMaker
from clsp.train.views import Views, build_augmentation
from conftest import SMALL_METHOD
from safetensors.torch import load_file
from waits import DEVICE, counted_waits, needs_pretended_device

BASE = {**SMALL_METHOD, "batch_size": 16, "queue_size": 32, "workers": 0}
PROGRAM = importlib.import_module("clsp.train.pretrain")
SYNTHETIC = {
    "none": {"source": "none"},
    "paper": {},
    "multi_positive": {"candidates": 3, "loss": "multi_positive"},
    "robust": {"candidates": 3, "loss": "robust", "probability": 0.5},
    "mean_target": {"candidates": 3, "loss": "mean_target"},
    "inflation": {"source": "inflation"},
}


def trainer_of(config: PretrainConfig) -> "PROGRAM.Trainer":
    accelerator = Accelerator()
    method = prepared_method(config, accelerator.device)
    model, optimizer = accelerator.prepare(method, build_optimizer(method, config))
    views = Views(config, 8, accelerator.device)
    inputs = InputMaker(config, views, accelerator.device, method.views, candidates=3)
    return PROGRAM.Trainer(accelerator, method, model, optimizer, config, inputs, per_epoch=100)


def batch_of(config: PretrainConfig) -> PairBatch:
    count = config.synthetic.candidates
    several = () if count == 1 else (count,)
    anchors_BCHW = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    candidates = torch.randint(0, 256, (16, *several, 3, 8, 8), dtype=torch.uint8)
    weights = torch.ones(16, *several)
    keys = [f"image_{number}" for number in range(16)]
    batch = PairBatch(anchors_BCHW, candidates, torch.arange(16) % 3, weights, keys)
    return batch.pin_memory() if torch.cuda.is_available() else batch


def waits_of_a_step(**changes) -> dict:
    config = PretrainConfig(**{**BASE, **changes})
    trainer = trainer_of(config)
    for step in range(2):
        trainer.step(step, batch_of(config))
    batch = batch_of(config)
    with counted_waits() as waits:
        trainer.step(2, batch)
    return dict(waits)


@needs_pretended_device
@pytest.mark.parametrize("synthetic", SYNTHETIC)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_training_step_waits_for_nothing(method, synthetic):
    assert waits_of_a_step(method=method, synthetic=SYNTHETIC[synthetic]) == {}


@needs_pretended_device
@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "lars"},
        {"optimizer": "adamw"},
        {"accumulation": 2},
        {"accumulation": 2, "contrast": "part"},
        {"augment": {"blur_probability": 0.5, "solarise_probability": 0.2}},
        {"batch_norm": "joint", "decoupled": True},
    ],
    ids=str,
)
def test_no_option_of_training_makes_the_host_wait(changes):
    assert waits_of_a_step(**changes) == {}


@needs_pretended_device
def test_the_count_sees_a_wait():
    config = PretrainConfig(**BASE)
    trainer = trainer_of(config)
    with counted_waits() as waits:
        losses = trainer.step(0, batch_of(config))
        float(losses["loss"])
        torch.ones(3).to(DEVICE, non_blocking=True)
    assert sum(waits.values()) == 2


@needs_pretended_device
def test_views_on_a_device_have_the_parameters_that_the_chain_draws():
    config = PretrainConfig(augment={"blur_probability": 0.5, "solarise_probability": 0.2})
    images_BCHW = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    found = Views(config, 8, DEVICE)(images_BCHW, view=1, step=3, rank=0)

    chain = build_augmentation(config.augmentation, 8, batched=True)
    torch.manual_seed(PROGRAM.stream_seed(0, 3, 0, "view", 1))
    expected = (chain(images_BCHW.to(DEVICE).float() / 255) - 0.5) / 0.5
    assert torch.equal(found, expected)


def spoil_loss(monkeypatch, step: int) -> None:
    """Let the loss of a step be infinite; every step asks for its loss once."""
    asked = iter(range(1000))
    total = PROGRAM.total_loss
    monkeypatch.setattr(
        PROGRAM,
        "total_loss",
        lambda *given: total(*given) * (float("inf") if next(asked) == step else 1.0),
    )


def good_run(shard_set: Path) -> tuple[ShardSet, PretrainConfig]:
    shards = ShardSet(shard_set)
    config = PretrainConfig(**{**BASE, "batch_size": 8}, epochs=4, checkpoint_epochs=1, lr=0.01)
    return shards, config


@pytest.mark.parametrize("bad", [5, 7, 9])  # the first, the third, the last step of five
def test_the_step_that_went_wrong_is_named_with_its_keys(shard_set, tmp_path, monkeypatch, bad):
    shards, config = good_run(shard_set)
    spoil_loss(monkeypatch, bad)
    with pytest.raises(WorkError) as error:
        pretrain(shards, config, tmp_path)

    order = BatchOrder(shards.shard_sizes, shards.plan.digest, 0, 8)
    (items,) = order.batches(bad, bad + 1)
    keys = [shards.key(position) for _, position in items]
    (last,) = checkpoints(tmp_path)  # of the first epoch
    assert last.name == "step-000000005.safetensors"
    assert str(error.value).startswith(
        f"the loss is inf at step {bad} (anchors {', '.join(keys[:4])}, …); "
        f"the last good checkpoint is {last}; "
    )
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(last).values())


def test_weights_that_are_not_finite_are_never_saved(shard_set, tmp_path, monkeypatch):
    """The loss of the epoch's last step is finite, its gradient is not."""
    shards, config = good_run(shard_set)
    asked = iter(range(1000))
    step = PROGRAM.Trainer.step

    def step_and_spoil(self, *given):
        losses = step(self, *given)
        if next(asked) == 9:
            self.method.projector[0].weight.data[0, 0] = float("nan")
        return losses

    monkeypatch.setattr(PROGRAM.Trainer, "step", step_and_spoil)
    with pytest.raises(WorkError, match="weights are not finite any more after step 9; the last"):
        pretrain(shards, config, tmp_path)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000005.safetensors"]


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_moments_come_back_in_the_memory_format_of_their_parameters(tmp_path, optimizer):
    """A fused optimizer goes through parameters and moments in the order of memory."""
    config = PretrainConfig(**BASE, optimizer=optimizer)
    saved = trainer_of(config)
    saved.step(0, batch_of(config))
    save_checkpoint(tmp_path, saved.method, saved.optimizer, {"step": 1}, keep=1)
    loaded = trainer_of(config)
    load_checkpoint(checkpoints(tmp_path)[0], loaded.method, loaded.optimizer)

    name = "momentum_buffer" if optimizer == "sgd" else "exp_avg"
    weight = loaded.method.backbone.conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    found = loaded.optimizer.state[weight][name]
    assert found.stride() == weight.stride()
    assert torch.equal(found, saved.optimizer.state[saved.method.backbone.conv1.weight][name])
