"""Losses against numpy, by hand, in float64."""

import math

import numpy as np
import pytest
import torch
from clsp.train import alignment, nt_xent
from clsp.train.losses import (
    covariance_penalty,
    cross_view,
    info_nce,
    invariance,
    mean_target,
    multi_positive,
    redundancy,
    robust_info_nce,
    supervised_contrastive,
    variance_hinge,
)
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


# Several positives


def members_and_weights(samples: int, views: int, candidates: int, weights=None):
    members = unit(samples * (views + candidates), 5, 3).reshape(samples, views + candidates, 5)
    weights = np.ones((samples, candidates)) if weights is None else np.asarray(weights, float)
    return members, weights


def mean_target_by_hand(z1, thirds, weights) -> float:
    total = 0.0
    for b in range(len(z1)):
        mean = sum(w * z for w, z in zip(weights[b], thirds[b], strict=True))
        if weights[b].any():
            cosine = z1[b] @ mean / np.linalg.norm(mean)
            total += weights[b].mean() * (2 - 2 * cosine)
    return total / len(z1)


def multi_positive_by_hand(members, weights, temperature) -> float:
    """One query after the other, over lists of those that take part."""
    samples, candidates = weights.shape
    views = members.shape[1] - candidates
    there = []  # (sample, embedding, what it counts in its sample)
    for b in range(samples):
        if not weights[b].any():
            continue
        there += [(b, members[b, v], 1.0) for v in range(views)]
        positive = weights[b][weights[b] > 0]
        for m in range(candidates):
            if weights[b, m] > 0:
                there.append((b, members[b, views + m], weights[b, m] / positive.mean()))

    total = 0.0
    for b in range(samples):
        loss = counted = 0.0
        for i, (own, z, share) in enumerate(there):
            if own != b:
                continue
            others = [other for j, other in enumerate(there) if j != i]
            denominator = sum(math.exp(z @ other / temperature) for _, other, _ in others)
            alike = [(other, count) for sample, other, count in others if sample == b]
            shares = sum(count for _, count in alike)
            for other, count in alike:
                q = math.exp(z @ other / temperature) / denominator
                loss -= share * count / shares * math.log(q)
            counted += share
        total += weights[b].mean() * (loss / counted if counted else 0.0)
    return total / samples


def robust_by_hand(z1, z3, weights, temperature, q, strength) -> float:
    total = 0.0
    for queries, keys in ((z1, z3), (z3, z1)):
        for b in range(len(z1)):
            positive = math.exp(queries[b] @ keys[b] / temperature)
            negatives = 0.0
            for other in range(len(z1)):
                if other != b and weights[other] > 0:
                    for z in (z1, z3):
                        negatives += math.exp(queries[b] @ z[other] / temperature)
            value = -(positive**q) / q + (strength * (positive + negatives)) ** q / q
            total += weights[b] * value
    return total / (2 * len(z1))


UNEVEN = [[1.5, 1.5, 0.0], [0.2, 0.7, 0.4], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0]]
"""Of four samples: two candidates there, weights by a measure, none allowed, one there."""


@pytest.mark.parametrize("weights", [None, UNEVEN])
def test_mean_target(weights):
    members, weights = members_and_weights(4, 1, 3, weights)
    z1, thirds = members[:, 0], members[:, 1:]
    found = mean_target(*map(torch.from_numpy, (z1, thirds, weights)))
    assert found.item() == pytest.approx(mean_target_by_hand(z1, thirds, weights), rel=1e-6)


def test_mean_target_of_one_candidate_is_alignment():
    members, weights = members_and_weights(4, 1, 1, [[1.0], [0.5], [0.0], [2.0]])
    z1, thirds, weights = map(torch.from_numpy, (members[:, 0], members[:, 1:], weights))
    expected = alignment(z1, thirds[:, 0], weights[:, 0])
    assert mean_target(z1, thirds, weights).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("weights", [None, UNEVEN])
def test_multi_positive(views, weights):
    members, weights = members_and_weights(4, views, 3, weights)
    found = multi_positive(*map(torch.from_numpy, (members, weights)), 0.2)
    expected = multi_positive_by_hand(members, weights, 0.2)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_multi_positive_with_equal_weights_is_the_supervised_loss_with_samples_as_classes():
    members, weights = map(torch.from_numpy, members_and_weights(5, 2, 3))
    everyone = members.flatten(0, 1)
    samples = torch.arange(5).repeat_interleave(5)
    expected = supervised_contrastive(everyone, everyone, torch.arange(25), samples, 0.2)
    assert multi_positive(members, weights, 0.2).item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("q", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [0.5, 0.0, 2.0, 1.0]])
def test_robust_info_nce(q, weights):
    z1, z3 = unit(4, 5, 0), unit(4, 5, 1)
    tensors = map(torch.from_numpy, (z1, z3, np.array(weights)))
    found = robust_info_nce(*tensors, 0.2, q, 0.01)
    expected = robust_by_hand(z1, z3, weights, 0.2, q, 0.01)
    assert found.item() == pytest.approx(expected, rel=1e-6)


def test_robust_info_nce_with_a_small_q_has_the_gradient_of_nt_xent():
    gradients = []
    for loss in (
        lambda z1, z3: robust_info_nce(z1, z3, torch.ones(6), 0.2, 1e-6, 0.01),
        lambda z1, z3: nt_xent(z1, z3, 0.2),
    ):
        z1, z3 = (torch.from_numpy(unit(6, 5, seed)).requires_grad_() for seed in (0, 1))
        loss(z1, z3).backward()
        gradients.append(torch.cat([z1.grad, z3.grad]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("weights", [UNEVEN, [[0.0] * 3] * 4])
def test_what_has_weight_0_takes_no_part_and_all_of_them_give_no_nan(weights):
    """Another image in its place changes nothing, and it gets no gradient; in float32 at a low temperature, too."""
    members, weights = members_and_weights(4, 2, 3, weights)
    out = np.concatenate([np.repeat(weights.any(1)[:, None], 2, axis=1), weights > 0], axis=1)
    for dtype in (torch.float64, torch.float32):
        losses = []
        for replaced in (False, True):
            images = np.where(out[:, :, None] | (not replaced), members, members[::-1, ::-1])
            z = torch.from_numpy(images).to(dtype).requires_grad_()
            w = torch.from_numpy(weights).to(dtype)
            several = multi_positive(z, w, 0.05)
            mean = mean_target(z[:, 0], z[:, 2:], w)
            robust = robust_info_nce(z[:, 0], z[:, 2], w[:, 0], 0.05, 0.5, 0.01)
            (several + mean + robust).backward()
            assert torch.isfinite(z.grad).all()
            assert not z.grad[~torch.from_numpy(out)].any()
            losses.append([several.item(), mean.item(), robust.item()])
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        assert all(losses[0]) == weights.any()


def test_the_mean_over_ranks_of_several_positives_is_the_loss_of_the_global_batch():
    members, weights = map(torch.from_numpy, members_and_weights(4, 2, 3, UNEVEN))
    several, robust = [], []
    z1, z3, w = members[:, 0], members[:, 2], weights[:, 0]
    for rank in (0, 1):
        own = slice(rank * 2, rank * 2 + 2)
        several.append(multi_positive(members[own], weights[own], 0.2, members, weights, rank))
        robust.append(robust_info_nce(z1[own], z3[own], w[own], 0.2, 0.5, 0.01, z1, z3, w, rank))
    whole = multi_positive(members, weights, 0.2), robust_info_nce(z1, z3, w, 0.2, 0.5, 0.01)
    for parts, expected in zip((several, robust), whole, strict=True):
        assert torch.stack(parts).mean().item() == pytest.approx(expected.item(), rel=1e-6)


# Without negatives, and without the positive among them


def decoupled_by_hand(z1, z2, temperature) -> float:
    """DCL: the pair is no part of the sum below."""
    z, count = np.concatenate([z1, z2]), len(z1)
    total = 0.0
    for i in range(2 * count):
        positive = (i + count) % (2 * count)
        negatives = 0.0
        for j in range(2 * count):
            if j not in (i, positive):
                negatives += math.exp(z[i] @ z[j] / temperature)
        total += math.log(negatives) - z[i] @ z[positive] / temperature
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 1.0])
@pytest.mark.parametrize("count", [2, 7])
def test_the_decoupled_loss(count, temperature):
    z1, z2 = unit(count, 5, 0), unit(count, 5, 1)
    found = nt_xent(torch.from_numpy(z1), torch.from_numpy(z2), temperature, decoupled=True)
    assert found.item() == pytest.approx(decoupled_by_hand(z1, z2, temperature), rel=1e-6)


def test_the_mean_over_ranks_of_the_decoupled_loss_is_that_of_the_global_batch():
    z1, z2 = (torch.from_numpy(unit(8, 5, seed)) for seed in (0, 1))
    parts = []
    for rank, start in enumerate((0, 4)):
        own = slice(start, start + 4)
        parts.append(nt_xent(z1[own], z2[own], 0.2, z1, z2, rank, decoupled=True))
    expected = nt_xent(z1, z2, 0.2, decoupled=True)
    assert torch.stack(parts).mean().item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_terms_of_vicreg():
    """With a dimension that has collapsed, one of more deviation than 1, and two that go together."""
    dice = np.random.default_rng(0)
    y1, y2 = dice.normal(size=(6, 5)), dice.normal(size=(6, 5))
    y1[:, 0] = 3.0
    y1[:, 1] *= 4
    y1[:, 2] = 0.1 * y1[:, 1]

    distance = 0.0
    for n in range(6):
        for d in range(5):
            distance += (y1[n, d] - y2[n, d]) ** 2 / 30

    hinge = 0.0
    for d in range(5):
        mean = sum(y1[n, d] for n in range(6)) / 6
        variance = sum((y1[n, d] - mean) ** 2 for n in range(6)) / 5
        hinge += max(0.0, 1 - math.sqrt(variance + 1e-4)) / 5

    covariance = np.cov(y1, rowvar=False)
    penalty = sum(covariance[i, j] ** 2 for i in range(5) for j in range(5) if i != j) / 5

    tensor1, tensor2 = torch.from_numpy(y1).requires_grad_(), torch.from_numpy(y2)
    assert invariance(tensor1, tensor2).item() == pytest.approx(distance, rel=1e-9)
    assert variance_hinge(tensor1).item() == pytest.approx(hinge, rel=1e-9)
    assert covariance_penalty(tensor1).item() == pytest.approx(penalty, rel=1e-9)
    variance_hinge(tensor1).backward()
    assert torch.isfinite(tensor1.grad).all() and not tensor1.grad[:, 1].any()
