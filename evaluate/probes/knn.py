"""Evaluate by the k nearest neighbours: weighted vote in cosine similarity (Wu et al. 2018).

Shape legend: N training images, M test images, K neighbours, F features.
"""

import numpy as np
import torch
from torch.nn import functional as F

from ..config import KnnConfig
from ..features.encoder import compute_device
from ..features.extract import Features
from .metrics import accuracy_with_interval
from .registry import Figures
from .tsne import feature_map

CHUNK = 1024


def nearest_neighbours(
    train_NF: torch.Tensor, test_MF: torch.Tensor, k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and places `(M, k)` of each test image's nearest training images, the nearest first."""
    device = compute_device()
    train = F.normalize(train_NF, dim=1).to(device)
    test = F.normalize(test_MF, dim=1).to(device)
    k = min(k, len(train))
    cosines = []
    places = []

    for chunk in test.split(CHUNK):  # all pairs at once could be larger than the memory
        nearest = (chunk @ train.T).topk(k, dim=1)
        cosines.append(nearest.values)
        places.append(nearest.indices)

    return torch.cat(cosines), torch.cat(places)


def vote(
    similarity_MK: torch.Tensor, labels_MK: torch.Tensor, classes: int, temperature: float
) -> torch.Tensor:
    """Predict classes `(M,)`: each neighbour votes for its label with `exp(cosine / temperature)`."""
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
    """Predict classes `(M,)` by the votes of the k nearest training images."""
    similarity, nearest = nearest_neighbours(train_NF, test_MF, k)
    return vote(similarity, labels_N.to(nearest.device)[nearest], classes, temperature)


def evaluate_knn(
    train: Features, test: Features, classes: int, config: KnnConfig, replica: bool = False
) -> Figures:
    """Return `{"k20", "k20_interval", …}` in percent for every k of the recipe.

    Args:
        replica: also `replica_best_on_test`, the best accuracy over `replica_k`. It is chosen on the test images, so it
            is no estimate of anything; the paper's authors report it.
    """
    asked_for = [*config.k, *config.replica_k] if replica else config.k
    similarity, nearest = nearest_neighbours(train.plain_NF, test.plain_NF, max(asked_for))
    labels = train.labels_N.to(nearest.device)[nearest]

    def hits(k: int) -> np.ndarray:
        predicted_M = vote(similarity[:, :k], labels[:, :k], classes, config.temperature)
        return (predicted_M == test.labels_N).numpy()

    result: Figures = {}
    for k in config.k:
        result |= accuracy_with_interval(f"k{k}", hits(k))

    if replica:
        shares = {k: 100 * float(hits(k).mean()) for k in config.replica_k}
        best = max(shares, key=lambda k: shares[k])
        result["replica_best_on_test"] = shares[best]
        result["replica"] = {"k": best, "chosen_on": "test"}

    return result


def run(
    train: Features,
    test: Features,
    classes: int,
    config: KnnConfig,
    seed: int,
    replica: bool = False,
) -> Figures:
    """Evaluate, and map the features of the test images; a vote needs no seed."""
    result = evaluate_knn(train, test, classes, config, replica)
    return result | {"map": feature_map(test)}
