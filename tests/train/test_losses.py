"""Losses against numpy, by hand, in float64."""

import math

import numpy as np
import pytest
import torch
from clsp.train import alignment, nt_xent
from clsp.train.losses import cross_view, info_nce, redundancy, supervised_contrastive
from clsp.train.methods.nnclr import nearest


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
    parts = [
        nt_xent(z1[s : s + 4], z2[s : s + 4], 0.2, z1, z2, rank) for rank, s in enumerate((0, 4))
    ]
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
    assert alignment(z1, z3, weights).item() == pytest.approx(
        (distances[0] + 2 * distances[3]).item() / 4, rel=1e-6
    )


def cross_entropy(logits: np.ndarray, target: int) -> float:
    return -(logits[target] - math.log(np.exp(logits).sum()))


def test_info_nce_with_a_queue():
    queries, keys, queue = unit(5, 4, 0), unit(5, 4, 1), unit(9, 4, 2)
    expected = np.mean(
        [
            cross_entropy(np.array([q @ k, *(queue @ q)]) / 0.2, 0)
            for q, k in zip(queries, keys, strict=True)
        ]
    )
    found = info_nce(*(torch.from_numpy(x) for x in (queries, keys, queue)), 0.2)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_cross_view_of_each_rank_is_its_part_of_the_global_one():
    targets, outputs = unit(6, 4, 0), unit(6, 4, 1)
    by_hand = [cross_entropy(targets[i] @ outputs.T / 0.2, i) for i in range(6)]
    tensors = torch.from_numpy(targets), torch.from_numpy(outputs)
    assert cross_view(*tensors, 0.2).item() == pytest.approx(np.mean(by_hand), rel=1e-6)
    second = cross_view(tensors[0][3:], tensors[1], 0.2, rank=1)
    assert second.item() == pytest.approx(np.mean(by_hand[3:]), rel=1e-6)


def test_supervised_contrastive():
    z, labels = unit(8, 4, 0), np.array([0, 1, 0, 2, 0, 1, 0, 2])
    total = 0.0
    for i in range(8):
        denominator = sum(math.exp(z[i] @ z[j] / 0.2) for j in range(8) if j != i)
        positives = [j for j in range(8) if j != i and labels[j] == labels[i]]
        total -= np.mean([math.log(math.exp(z[i] @ z[p] / 0.2) / denominator) for p in positives])
    tensor = torch.from_numpy(z)
    found = supervised_contrastive(tensor, tensor, torch.arange(8), torch.from_numpy(labels), 0.2)
    assert found.item() == pytest.approx(total / 8, rel=1e-6)


def test_supervised_contrastive_with_labels_all_different_is_nt_xent():
    z1, z2 = (torch.from_numpy(unit(6, 5, seed)) for seed in (0, 1))
    everyone = torch.cat([z1, z2])
    found = supervised_contrastive(
        everyone, everyone, torch.arange(12), torch.arange(6).repeat(2), 0.2
    )
    assert found.item() == pytest.approx(nt_xent(z1, z2, 0.2).item(), rel=1e-6)


def test_redundancy():
    keys, outputs = (
        [np.random.default_rng(s).normal(size=(7, 3)) for s in (0, 1)],
        [np.random.default_rng(s).normal(size=(7, 3)) for s in (2, 3)],
    )
    on, off = [], []
    for key, output in ((keys[0], outputs[1]), (keys[1], outputs[0])):
        for i in range(3):
            for j in range(3):
                cosine = (
                    key[:, i]
                    @ output[:, j]
                    / np.linalg.norm(key[:, i])
                    / np.linalg.norm(output[:, j])
                )
                (on if i == j else off).append((cosine - (i == j)) ** 2)
    expected = 0.5 * math.sqrt(np.mean(on)) + 0.5 * math.sqrt(np.mean(off))
    found = redundancy([torch.from_numpy(x) for x in keys], [torch.from_numpy(x) for x in outputs])
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_losses_compute_in_float32_under_autocast():
    z1, z2, queue = (torch.from_numpy(unit(16, 8, seed)).float() for seed in range(3))
    plain = [nt_xent(z1, z2, 0.05), info_nce(z1, z2, queue, 0.05), cross_view(z1, z2, 0.05)]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [nt_xent(z1, z2, 0.05), info_nce(z1, z2, queue, 0.05), cross_view(z1, z2, 0.05)]
        assert (z1 @ z2.T).dtype == torch.bfloat16 and nearest(z1, queue, 1).dtype == torch.float32
    for one, other in zip(plain, mixed, strict=True):
        assert torch.equal(one, other)
    halves = nt_xent(z1.bfloat16(), z2.bfloat16(), 0.05)
    assert halves.dtype == torch.float32
