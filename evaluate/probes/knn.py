"""k-nearest-neighbour evaluation: weighted vote in cosine similarity (Wu et al. 2018)."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from ..config import KnnConfig
from ..features.encoder import compute_device
from ..features.extract import Features
from .metrics import accuracy_with_interval

CHUNK = 1024


def nearest_neighbours(
    train_NF: torch.Tensor, test_MF: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and places `(M, k)` of each test image's nearest training images, the nearest first."""
    device = compute_device()
    train = F.normalize(train_NF, dim=1).to(device)
    test = F.normalize(test_MF, dim=1).to(device)
    found = [(chunk @ train.T).topk(min(k, len(train)), dim=1) for chunk in test.split(CHUNK)]
    return torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])


def vote(
    similarity_MK: torch.Tensor, labels_MK: torch.Tensor, classes: int, temperature: float
) -> torch.Tensor:
    """Predicted classes `(M,)`: each neighbour votes for its label with `exp(cosine / temperature)`."""
    weights = ((similarity_MK - similarity_MK[:, :1]) / temperature).exp()
    votes = similarity_MK.new_zeros(len(similarity_MK), classes).scatter_add_(1, labels_MK, weights)
    return votes.argmax(dim=1).cpu()


def knn_predict(
    train_NF: torch.Tensor,
    labels_N: torch.Tensor,
    test_MF: torch.Tensor,
    classes: int,
    k: int,
    temperature: float,
) -> torch.Tensor:
    """Predicted classes `(M,)` by the votes of the k nearest training images."""
    similarity, nearest = nearest_neighbours(train_NF, test_MF, k)
    return vote(similarity, labels_N.to(nearest.device)[nearest], classes, temperature)


def evaluate_knn(
    train: Features, test: Features, classes: int, config: KnnConfig, replica: bool = False
) -> dict[str, Any]:
    """`{"k20", "k20_interval", …}` in percent for every k of the recipe.

    Args:
        replica: also `replica_best_on_test`, the best accuracy over `replica_k`. It is chosen on the test images, so it
            is no estimate of anything; the paper's authors report it.
    """
    most = max((*config.k, *config.replica_k) if replica else config.k)
    similarity, nearest = nearest_neighbours(train.plain_NF, test.plain_NF, most)
    labels = train.labels_N.to(nearest.device)[nearest]

    def hits(k: int) -> np.ndarray:
        return (
            vote(similarity[:, :k], labels[:, :k], classes, config.temperature) == test.labels_N
        ).numpy()

    result: dict[str, Any] = {}
    for k in config.k:
        result |= accuracy_with_interval(f"k{k}", hits(k))

    if replica:
        shares = {k: 100 * float(hits(k).mean()) for k in config.replica_k}
        best = max(shares, key=lambda k: shares[k])
        result |= {
            "replica_best_on_test": shares[best],
            "replica": {"k": best, "chosen_on": "test"},
        }

    return result
