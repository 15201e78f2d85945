"""Measure how far a set of images is from another one, in the features of an encoder.

Shape legend: N and M images, F features.
"""

import numpy as np
import torch

NEIGHBOURS = 3
SUBSETS = 100
SUBSET = 1000
CHUNK = 2048


class Moments:
    """Sums up mean and covariance of features that come in parts, in float64.

    >>> moments = Moments(2)
    >>> moments.add(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    >>> moments.mean.tolist()
    [1.0, 2.0]
    >>> moments.covariance.tolist()
    [[2.0, 2.0], [2.0, 2.0]]
    """

    def __init__(self, width: int):
        self.count = 0
        self._sum = torch.zeros(width, dtype=torch.float64)
        self._squares = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features_NF: torch.Tensor) -> None:
        """Add a part of the features."""
        for part in features_NF.split(CHUNK):
            features = part.double()
            self.count += len(features)
            self._sum += features.sum(dim=0)
            self._squares += features.T @ features

    @property
    def mean(self) -> torch.Tensor:
        """Return the mean `(F,)`."""
        return self._sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """Return the covariance `(F, F)` of a sample (n - 1)."""
        centred = self._squares - self.count * torch.outer(self.mean, self.mean)
        return centred / max(1, self.count - 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """Return the Fréchet distance of two Gaussians (Heusel et al. 2017), `|μ1-μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½)`.

    With Inception-v3 as the encoder this is FID; with others its scale is the encoder's own.
    """
    return frechet_of((first.mean, first.covariance), (second.mean, second.covariance))


def frechet_of(
    first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]
) -> float:
    """Return `frechet_distance` of means `(F,)` and covariances `(F, F)`."""
    mean, covariance = first
    other_mean, other_covariance = second

    # tr (Σ1 Σ2)^½ is the sum of the roots of the eigenvalues of Σ1^½ Σ2 Σ1^½, which is symmetric
    values, vectors = torch.linalg.eigh(covariance)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    product = root @ other_covariance @ root
    roots = torch.linalg.eigvalsh(product).clamp_min(0).sqrt()

    # |μ1-μ2|² + tr(Σ1 + Σ2) - 2 tr (Σ1 Σ2)^½
    between_means = (mean - other_mean).square().sum()
    traces = covariance.trace() + other_covariance.trace()
    return float(between_means + traces - 2 * roots.sum())


def kernel_distance(
    first_NF: torch.Tensor, second_MF: torch.Tensor, subsets: int = SUBSETS, size: int = SUBSET
) -> tuple[float, float]:
    """Return the kernel distance (Bińkowski et al. 2018), mean and deviation over `subsets` random subsets.

    The unbiased estimate of the squared MMD with the kernel `(x·y / F + 1)³`; slightly negative for equal sets.

    Args:
        size: images of a subset.
    """
    generator = np.random.default_rng(0)
    size = min(size, len(first_NF), len(second_MF))
    found = []

    for _ in range(subsets):
        x = _subset(first_NF, size, generator)
        y = _subset(second_MF, size, generator)
        xx = _kernel(x, x)
        yy = _kernel(y, y)
        xy = _kernel(x, y)

        # Pairs of an image with itself would bias the estimate
        pairs = size * (size - 1)
        within = (xx.sum() - xx.trace() + yy.sum() - yy.trace()) / pairs
        found.append(float(within - 2 * xy.mean()))

    return float(np.mean(found)), float(np.std(found))


def _subset(features_NF: torch.Tensor, size: int, generator: np.random.Generator) -> torch.Tensor:
    chosen = generator.choice(len(features_NF), size, replace=False)
    return features_NF[torch.from_numpy(chosen)].double()


def _kernel(a_NF: torch.Tensor, b_MF: torch.Tensor) -> torch.Tensor:
    return ((a_NF @ b_MF.T) / a_NF.shape[1] + 1) ** 3


def precision_recall(
    real_NF: torch.Tensor, made_MF: torch.Tensor, k: int = NEIGHBOURS
) -> tuple[float, float]:
    """Return improved precision and recall (Kynkäänniemi et al. 2019), from 0 to 1.

    Precision is the share of made images inside the union of balls around the real ones, each as wide as the distance
    to its k-th neighbour; recall the same with the roles changed.
    """
    return _inside(made_MF, real_NF, k), _inside(real_NF, made_MF, k)


def _inside(points_NF: torch.Tensor, centres_MF: torch.Tensor, k: int) -> float:
    """Return the share of points inside any ball around the centres."""
    # Each ball reaches the k-th neighbour of its centre, which is its own nearest one
    k = min(k, len(centres_MF) - 1)
    radii = []
    for chunk in centres_MF.split(CHUNK):
        radii.append(torch.cdist(chunk, centres_MF).kthvalue(k + 1, dim=1).values)
    radii_M = torch.cat(radii)

    hits = []
    for chunk in points_NF.split(CHUNK):
        hits.append((torch.cdist(chunk, centres_MF) <= radii_M).any(dim=1))
    return float(torch.cat(hits).double().mean())
