"""Batches in parts that contrast with all of it: the gradients are those of the undivided batch."""

import copy
import dataclasses
from contextlib import nullcontext

import pytest
import torch
from clsp.shards import ShardSet
from clsp.train import METHODS, PretrainConfig, build_method, pretrain
from clsp.train.grad_cache import backward_over_batch
from clsp.train.inputs import StepInputs
from clsp.train.pretrain import total_loss
from conftest import SMALL_METHOD

NETWORKS = {
    **SMALL_METHOD,
    "backbone_kwargs": {
        "channels": [8, 8, 8, 8],
        "layers": [1, 1, 1, 1],
        "norm_layer": "groupnorm1",
    },
    "head_norm": "layer",
    "projector_norm": True,
    "batch_size": 16,
    "queue_size": 32,
}


def one_of(method: str, accumulation: int, **changes) -> torch.nn.Module:
    """A method in float64 without dropout, the same weights and queues always."""
    torch.manual_seed(0)
    config = PretrainConfig(
        **{**NETWORKS, "method": method, "accumulation": accumulation, **changes}
    )
    built = build_method(config).double()
    for module in built.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(module, torch.nn.MultiheadAttention):
            module.dropout = 0.0
    built.before_step(0, 10)
    return built


def batch(count: int = 16) -> StepInputs:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(3, count, 3, 8, 8, generator=generator, dtype=torch.float64)
    weights = torch.rand(count, generator=generator, dtype=torch.float64)
    return StepInputs([images[0], images[1]], images[2], weights, torch.arange(count) % 3)


def total(losses):
    return total_loss(losses, 0.7)


@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("batch_norm", ["joint", "per_view"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_gradients_are_those_of_the_undivided_batch(method, batch_norm, parts):
    inputs = batch()
    whole = one_of(method, 1, batch_norm=batch_norm)
    losses = whole(inputs.views, inputs.third, inputs.weights_B, inputs.labels_B)
    total(losses).backward()

    divided = one_of(method, parts, batch_norm=batch_norm)

    found = backward_over_batch(divided, inputs, parts, total, nullcontext, ("test",))
    assert float(found["loss"]) == pytest.approx(float(total(losses).detach()), rel=1e-10)
    expected = dict(whole.named_parameters())
    for name, parameter in divided.named_parameters():
        if expected[name].grad is None:
            assert parameter.grad is None, name
            continue
        torch.testing.assert_close(
            parameter.grad, expected[name].grad, atol=1e-11, rtol=1e-8, msg=name
        )

    # Queues too have taken up the whole batch
    for name, buffer in whole.named_buffers():
        torch.testing.assert_close(dict(divided.named_buffers())[name], buffer, msg=name)


def test_parts_alone_have_other_gradients():
    """Show what the test above would say of contrasts within parts."""
    inputs = batch()
    whole = one_of("simclr", 1)
    total(whole(inputs.views, inputs.third, inputs.weights_B, inputs.labels_B)).backward()
    parts = one_of("simclr", 2, contrast="part")
    for piece in inputs.split(2):
        losses = parts(piece.views, piece.third, piece.weights_B, piece.labels_B)
        (total(losses) / 2).backward()
    first = next(whole.parameters()).grad
    assert not torch.allclose(next(parts.parameters()).grad, first, rtol=1e-2)


def test_both_passes_drop_the_same_and_running_statistics_count_once():
    """Dropout in the backbone: the gradient is that of what was embedded, checked by a finite difference."""
    config = PretrainConfig(**{**SMALL_METHOD, "batch_size": 8, "accumulation": 2})
    torch.manual_seed(0)
    method = build_method(config)
    method.projector.insert(1, torch.nn.Dropout(0.5))
    method.double()
    inputs = batch(8)
    inputs = dataclasses.replace(inputs, weights_B=None)

    def run():
        method.zero_grad()
        return backward_over_batch(method, inputs, 2, total, nullcontext, ("test", 3))["loss"]

    # The statistics are those of one pass, part by part
    twin = copy.deepcopy(method)
    for piece in inputs.split(2):
        twin.project(piece.views, piece.third)
    run()
    norm = next(m for m in method.modules() if isinstance(m, torch.nn.BatchNorm2d))
    expected = next(m for m in twin.modules() if isinstance(m, torch.nn.BatchNorm2d))
    torch.testing.assert_close(norm.running_mean, expected.running_mean)
    torch.testing.assert_close(norm.running_var, expected.running_var)

    weight = method.projector[0].weight
    gradient = weight.grad[0, 0].item()
    weight.data[0, 0] += 1e-6
    above = run()
    weight.data[0, 0] -= 2e-6
    below = run()
    assert gradient == pytest.approx(float(above - below) / 2e-6, rel=1e-3, abs=1e-8)


def test_a_run_in_parts_records_how_it_contrasts_and_an_earlier_one_goes_on(shard_set, tmp_path):
    shards = ShardSet(shard_set)
    base = {**SMALL_METHOD, "epochs": 1, "warmup_epochs": 0, "workers": 0, "batch_size": 16}
    assert "contrast" not in PretrainConfig(**base).recorded()
    assert "contrast" not in PretrainConfig(**base, accumulation=2, contrast="part").recorded()
    whole = PretrainConfig(**base, accumulation=2)
    assert whole.recorded()["contrast"] == "batch"
    pretrain(shards, whole, tmp_path / "run")
    assert (tmp_path / "run" / "backbone").exists()
