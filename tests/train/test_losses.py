"""Losses against numpy, by hand, in float64."""

import math

import numpy as np
import pytest
import torch
from clsp.train import alignment, nt_xent


def unit(count: int, dimension: int, seed: int) -> np.ndarray:
    values = np.random.default_rng(seed).normal(size=(count, dimension))
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def nt_xent_by_hand(z1: np.ndarray, z2: np.ndarray, temperature: float) -> float:
    z, count = np.concatenate([z1, z2]), len(z1)
    total = 0.0
    for i in range(2 * count):
        positive = (i + count) % (2 * count)
        others = [math.exp(z[i] @ z[j] / temperature) for j in range(2 * count) if j != i]
        total -= math.log(math.exp(z[i] @ z[positive] / temperature) / sum(others))
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("count", [2, 7])
def test_nt_xent(count, temperature):
    z1, z2 = unit(count, 5, 0), unit(count, 5, 1)
    found = nt_xent(torch.from_numpy(z1), torch.from_numpy(z2), temperature).item()
    assert found == pytest.approx(nt_xent_by_hand(z1, z2, temperature), rel=1e-6)


def test_the_mean_over_ranks_is_the_loss_of_the_global_batch():
    z1, z2 = (torch.from_numpy(unit(8, 5, seed)) for seed in (0, 1))
    parts = [nt_xent(z1[s : s + 4], z2[s : s + 4], 0.2, z1, z2, rank) for rank, s in enumerate((0, 4))]
    assert torch.stack(parts).mean().item() == pytest.approx(nt_xent(z1, z2, 0.2).item(), rel=1e-6)


def test_alignment_is_two_minus_two_cosines_with_gradient_on_both_sides():
    z1, z3 = unit(6, 5, 0), unit(6, 5, 1)
    expected = np.mean([2 - 2 * float(a @ b) for a, b in zip(z1, z3, strict=True)])
    first, third = (torch.from_numpy(z).requires_grad_() for z in (z1, z3))
    loss = alignment(first, third)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(first.grad.numpy(), -2 * z3 / 6, rtol=1e-5)
    np.testing.assert_allclose(third.grad.numpy(), -2 * z1 / 6, rtol=1e-5)


def test_alignment_weights_samples_over_the_whole_batch():
    z1, z3 = (torch.from_numpy(unit(4, 5, seed)) for seed in (0, 1))
    weights = torch.tensor([1.0, 0.0, 0.0, 2.0])
    distances = 2 - 2 * (z1 * z3).sum(1)
    assert alignment(z1, z3, weights).item() == pytest.approx((distances[0] + 2 * distances[3]).item() / 4, rel=1e-6)
