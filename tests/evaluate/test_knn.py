import math

import numpy as np
import pytest
import torch
from clsp.evaluate import Features, KnnConfig, evaluate_knn, knn_predict


def knn_by_hand(train, labels, query, k, temperature, classes):
    cosines = [float(np.dot(row, query) / np.linalg.norm(row) / np.linalg.norm(query)) for row in train]
    votes = [0.0] * classes
    for index in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
        votes[labels[index]] += math.exp(cosines[index] / temperature)
    return int(np.argmax(votes))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_agree_with_a_computation_by_hand(k):
    rng = np.random.default_rng(0)
    train, labels, test = rng.normal(size=(60, 6)), rng.integers(0, 4, 60), rng.normal(size=(25, 6))
    expected = [knn_by_hand(train, labels, query, k, 0.07, 4) for query in test]
    found = knn_predict(*map(torch.from_numpy, (train, labels, test)), classes=4, k=k, temperature=0.07)
    assert found.tolist() == expected


def test_a_k_beyond_the_training_set_uses_all_of_it():
    train = Features(torch.eye(3), None, torch.tensor([0, 1, 2]))
    assert evaluate_knn(train, train, 3, KnnConfig(k=(200,)))["k200"] == 100.0
