"""What goes into a step: inflated anchors, sample weights, parts of a batch."""

import json
import os
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from clsp.core import InputError, stop_deferred
from clsp.shards import BatchOrder, PairDataset, ShardSet
from clsp.shards.reading.scores import add_scores
from clsp.train import PretrainConfig, build_method, pretrain
from clsp.train.build import build_optimizer, pair_loader, prepared_method
from clsp.train.inputs import InputMaker
from clsp.train.pretrain import Trainer
from clsp.train.views import Views

BASE = {
    "epochs": 1,
    "batch_size": 16,
    "backbone_kwargs": {
        "channels": [8, 8, 8, 8],
        "layers": [1, 1, 1, 1],
        "norm_layer": "groupnorm1",
    },
    "projector_hidden": 16,
    "projector_out": 8,
    "workers": 0,
    "trackers": [],
}


def trainer(shards: ShardSet, **changes) -> Trainer:
    config = PretrainConfig(**{**BASE, **changes})
    torch.manual_seed(0)
    method = build_method(config)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    device = torch.device("cpu")
    views = Views(config, 8, device)
    inputs = InputMaker(config, views, device, method.views, shards.candidates)
    per_epoch = BatchOrder(shards.shard_sizes, shards.plan.digest, 0, 16).batches_per_epoch
    return Trainer(Accelerator(), method, method, optimizer, config, inputs, per_epoch)


def batch_of(shards: ShardSet, count: int = 16):
    return PairDataset(shards, 0).__getitems__([(0, n) for n in range(count)])


def test_inflation_replaces_the_share_that_the_weights_say(shard_set):
    shards = ShardSet(shard_set)
    found = trainer(shards, synthetic={"source": "inflation", "real_weight": 3.0})
    batch = batch_of(shards, 40)
    made = []
    for step in range(50):
        images = found.inputs.inflated(step, batch)
        is_made = (images == batch.candidates_BCHW).flatten(1).all(1)
        assert torch.equal(is_made, ~(images == batch.anchors_BCHW).flatten(1).all(1))
        made.append(is_made.double().mean())
    assert float(torch.stack(made).mean()) == pytest.approx(0.5, abs=0.03)  # K = 3 to 3
    assert found.inputs(0, batch).third is None  # no third view
    batch.weights_B[:5] = 0  # none of their candidates passes a filter
    assert torch.equal(found.inputs.inflated(0, batch)[:5], batch.anchors_BCHW[:5])
    with pytest.raises(ValueError, match="inflation has none"):
        PretrainConfig(synthetic={"source": "inflation", "scores": "x", "weighted": True})
    assert not torch.equal(found.inputs.inflated(0, batch), found.inputs.inflated(1, batch))


def test_inflation_has_the_weaker_augmentation_and_its_own_name():
    config = PretrainConfig(synthetic={"source": "inflation", "weight": 0.0})
    weak = config.augmentation
    assert (weak.crop_scale, weak.jitter_probability, weak.brightness, weak.hue) == (
        0.2,
        0.4,
        0.2,
        0.05,
    )
    assert (
        config.run_name == "simclr+inflation" and PretrainConfig().augmentation.crop_scale == 0.08
    )


def test_weights_of_scores_and_of_the_draw_multiply(shard_set):
    found = trainer(ShardSet(shard_set), synthetic={"probability": 0.5})
    weights = torch.full((4000,), 0.25)
    mixed = found.inputs._weights(0, weights)
    assert set(mixed.tolist()) == {0.0, 0.25} and mixed.mean() == pytest.approx(0.125, abs=0.01)
    assert trainer(ShardSet(shard_set)).inputs._weights(0, torch.ones(8)) is None


def test_accumulated_gradients_are_the_mean_over_the_parts(shard_set):
    shards = ShardSet(shard_set)
    batch = batch_of(shards)
    found = trainer(shards, accumulation=2, contrast="part")
    before = {name: value.clone() for name, value in found.method.named_parameters()}
    losses = found.step(3, batch)
    reference = trainer(shards)
    whole = reference.inputs(3, batch)
    views, third = whole.views, whole.third
    expected = []
    for part in (slice(0, 8), slice(8, 16)):
        values = reference.method(
            [view[part] for view in views], third[part], None, batch.labels_B[part]
        )
        expected.append(sum(values.values()))
    (sum(expected) / 2).backward()
    assert float(losses["loss"]) == pytest.approx(float(sum(expected).detach() / 2), rel=1e-5)
    for name, parameter in reference.method.named_parameters():
        moved = before[name] - dict(found.method.named_parameters())[name]
        torch.testing.assert_close(moved, found.rate * parameter.grad, atol=1e-7, rtol=1e-4)


def test_what_a_method_needs_of_the_set_is_checked_first(
    shard_set, make_set, tmp_path, monkeypatch
):
    shards = ShardSet(shard_set)
    order = BatchOrder(shards.shard_sizes, shards.plan.digest, 0, 16)
    with pytest.raises(InputError, match="has no scores, expected simclr"):
        pair_loader(shards, PretrainConfig(synthetic={"scores": "simclr"}), order)
    monkeypatch.setattr(ShardSet, "labels", lambda self: np.full(40, -1))
    with pytest.raises(InputError, match="method = supcon needs labels"):
        pair_loader(shards, PretrainConfig(method="supcon"), order)
    monkeypatch.setattr(ShardSet, "candidates", 0)
    with pytest.raises(InputError, match="has no candidates"):
        pair_loader(shards, PretrainConfig(), order)
    pair_loader(shards, PretrainConfig(synthetic={"source": "none"}), order)


def test_a_run_with_scores_reads_them(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    keys = [ShardSet(root).key(n) for n in range(40)]
    values = np.random.default_rng(0).random((40, 3)).astype(np.float32)
    add_scores(root, "known", keys, {"cosine": values}, {})
    digests = set()
    for synthetic in ({}, {"scores": "known", "measure": "cosine", "weighted": True}):
        out = pretrain(
            ShardSet(root),
            PretrainConfig(**BASE, synthetic=synthetic),
            tmp_path / str(len(digests)),
        )
        digests.add((out / "model.safetensors").read_bytes())
    assert len(digests) == 2


def test_a_signal_inside_the_block_is_only_noted():
    before = signal.getsignal(signal.SIGTERM)
    with stop_deferred() as requested:
        assert not requested()
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested()
    assert signal.getsignal(signal.SIGTERM) is before


def test_trackers_get_the_metrics_and_unknown_ones_are_refused(shard_set, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = PretrainConfig(**{**BASE, "trackers": ["tensorboard"]})
    pretrain(ShardSet(shard_set), config, tmp_path / "run")
    files = list((tmp_path / "run" / "tensorboard").rglob("events.*"))
    found = EventAccumulator(str(files[0].parent)).Reload()
    logged = json.loads((tmp_path / "run" / "log.jsonl").read_text())
    assert found.Scalars("loss")[0].value == pytest.approx(logged["loss"], rel=1e-5)
    with pytest.raises(InputError, match="aim is not installed"):
        pretrain(
            ShardSet(shard_set), PretrainConfig(**{**BASE, "trackers": ["aim"]}), tmp_path / "other"
        )


def test_lars_is_solo_learns():
    method = build_method(PretrainConfig(**{**BASE, "optimizer": "lars"}))
    groups = build_optimizer(method, PretrainConfig(**{**BASE, "optimizer": "lars"})).param_groups
    assert {group["trust_coeff"] for group in groups} == {0.02} and all(
        group["trust_clip"] for group in groups
    )
    assert {group["weight_decay"] for group in groups} == {0.0, 1e-4}


def test_synchronised_batch_norm_needs_a_gpu():
    with pytest.raises(InputError, match="works on GPUs only"):
        prepared_method(PretrainConfig(**BASE, sync_batch_norm=True), torch.device("cpu"))


def test_compiled_backbones_export_plain_names(monkeypatch):
    called = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: called.append(type(self).__name__))
    method = prepared_method(PretrainConfig(**BASE, compile=True), torch.device("cpu"))
    assert called == ["CifarResNet"] and "conv1.weight" in method.backbone.state_dict()
