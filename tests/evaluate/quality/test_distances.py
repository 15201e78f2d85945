import numpy as np
import pytest
import scipy.linalg
import torch
from clsp.evaluate import Moments, frechet_distance, kernel_distance, precision_recall


def normal(count, width, mean=0.0, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(mean, 1, (count, width)))


def moments(*parts):
    found = Moments(parts[0].shape[1])
    for part in parts:
        found.add(part)
    return found


def test_frechet_distance_with_scipys_matrix_root():
    x, y = normal(200, 6), normal(150, 6, 0.5, 1) @ normal(6, 6, 0, 2)
    first, second = x.numpy(), y.numpy()
    covariances = np.cov(first.T), np.cov(second.T)
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = np.sum((first.mean(0) - second.mean(0)) ** 2) + np.trace(sum(covariances) - 2 * root)
    assert frechet_distance(moments(x[:30], x[30:]), moments(y)) == pytest.approx(
        expected, rel=1e-6
    )
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_fewer_images_than_features():
    x = normal(10, 40)
    assert frechet_distance(moments(x), moments(x)) == pytest.approx(0, abs=1e-5)


def test_kernel_distance_by_its_double_sum():
    x, y = normal(12, 3), normal(12, 3, 0.7, 1)

    def kernel(a, b):
        return (float(a @ b) / 3 + 1) ** 3

    within = sum(
        kernel(a[i], a[j]) for a in (x, y) for i in range(12) for j in range(12) if i != j
    ) / (12 * 11)
    between = sum(kernel(a, b) for a in x for b in y) / 144
    found, deviation = kernel_distance(x, y, subsets=3)
    assert found == pytest.approx(within - 2 * between) and deviation == pytest.approx(0, abs=1e-9)
    assert abs(kernel_distance(normal(3000, 8), normal(3000, 8, 0, 1))[0]) < 0.05


def test_precision_and_recall_by_hand():
    """On a line: real 0 1 2 3, made 1.4 and 9; with k = 1 every real ball has radius 1."""
    real = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    made = torch.tensor([[1.4], [9.0]])
    precision, recall = precision_recall(real, made, k=1)
    assert precision == 0.5  # 1.4 lies within 1 of 1 and 2, 9 nowhere
    assert recall == 1.0  # the balls of the made ones have radius 7.6


def test_fewer_modes_lower_the_recall_and_noise_the_precision():
    real = torch.cat([normal(300, 4), normal(300, 4, 20)])
    half, wide = normal(300, 4, 0, 1), normal(600, 4, 0, 1) * 30
    assert precision_recall(real, half)[0] > 0.9 and precision_recall(real, half)[1] < 0.6
    assert precision_recall(real, wide)[0] < 0.1
