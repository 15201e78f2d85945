"""k-nearest-neighbour evaluation: weighted vote in cosine similarity (Wu et al. 2018)."""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from .config import KnnConfig
from .features import Features
from .metrics import accuracy_with_interval

CHUNK = 1024


def knn_predict(
    train_NF: torch.Tensor, labels_N: torch.Tensor, test_MF: torch.Tensor, classes: int, k: int, temperature: float
) -> torch.Tensor:
    """Predicted classes `(M,)`: each of the k nearest training images votes with `exp(cosine / temperature)`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, test, labels_N = F.normalize(train_NF, dim=1).to(device), F.normalize(test_MF, dim=1), labels_N.to(device)
    predictions = []
    for chunk in test.to(device).split(CHUNK):
        similarity, nearest = (chunk @ train.T).topk(min(k, len(train)), dim=1)
        votes = similarity.new_zeros(len(chunk), classes).scatter_add_(
            1, labels_N[nearest], ((similarity - similarity[:, :1]) / temperature).exp()
        )
        predictions.append(votes.argmax(dim=1).cpu())
    return torch.cat(predictions)


def evaluate_knn(
    train: Features, test: Features, classes: int, config: KnnConfig, replica: bool = False
) -> dict[str, Any]:
    """`{"k20", "k20_interval", …}` in percent for every k of the recipe.

    Args:
        replica: also `replica_best_on_test`, the best accuracy over `replica_k`. It is chosen on the test images, so it
            is no estimate of anything; the paper's authors report it.
    """

    def hits(k: int) -> np.ndarray:
        predicted = knn_predict(train.plain_NF, train.labels_N, test.plain_NF, classes, k, config.temperature)
        return (predicted == test.labels_N).numpy()

    result: dict[str, Any] = {}
    for k in config.k:
        result |= accuracy_with_interval(f"k{k}", hits(k))
    if replica:
        shares = {k: 100 * float(hits(k).mean()) for k in config.replica_k}
        best = max(shares, key=lambda k: shares[k])
        result |= {"replica_best_on_test": shares[best], "replica": {"k": best, "chosen_on": "test"}}
    return result
