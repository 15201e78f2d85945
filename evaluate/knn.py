"""k-nearest-neighbour evaluation: weighted vote in cosine similarity (Wu et al. 2018)."""

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
    train, test = F.normalize(train_NF, dim=1), F.normalize(test_MF, dim=1)
    predictions = []
    for chunk in test.split(CHUNK):
        similarity, nearest = (chunk @ train.T).topk(min(k, len(train)), dim=1)
        votes = similarity.new_zeros(len(chunk), classes).scatter_add_(
            1, labels_N[nearest], ((similarity - similarity[:, :1]) / temperature).exp()
        )
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def evaluate_knn(train: Features, test: Features, classes: int, config: KnnConfig) -> dict:
    """`{"k20", "k20_interval", …}` in percent for every k of the recipe."""
    result = {}
    for k in config.k:
        predicted = knn_predict(train.plain_NF, train.labels_N, test.plain_NF, classes, k, config.temperature)
        result |= accuracy_with_interval(f"k{k}", (predicted == test.labels_N).numpy())
    return result
