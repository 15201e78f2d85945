import math

import numpy as np
import pytest
import torch
from clsp.evaluate import Features, KnnConfig, evaluate_knn, knn_predict


def knn_by_hand(train, labels, query, k, temperature, classes):
    cosines = [
        float(np.dot(row, query) / np.linalg.norm(row) / np.linalg.norm(query)) for row in train
    ]
    votes = [0.0] * classes
    for index in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
        votes[labels[index]] += math.exp(cosines[index] / temperature)
    return int(np.argmax(votes))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_votes_agree_with_a_computation_by_hand(k):
    rng = np.random.default_rng(0)
    train, labels, test = rng.normal(size=(60, 6)), rng.integers(0, 4, 60), rng.normal(size=(25, 6))
    expected = [knn_by_hand(train, labels, query, k, 0.07, 4) for query in test]
    found = knn_predict(
        *map(torch.from_numpy, (train, labels, test)), classes=4, k=k, temperature=0.07
    )
    assert found.tolist() == expected


def test_a_k_beyond_the_training_set_uses_all_of_it():
    train = Features(torch.eye(3), None, torch.tensor([0, 1, 2]))
    assert evaluate_knn(train, train, 3, KnnConfig(k=(200,)))["k200"] == 100.0


def test_the_replica_is_the_best_k_on_test():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 3, (60,), generator=generator)
    train = Features(torch.randn(60, 4, generator=generator) + labels[:, None], None, labels)
    test = Features(torch.randn(30, 4, generator=generator) + labels[:30, None], None, labels[:30])
    result = evaluate_knn(train, test, 3, KnnConfig(k=(20,), replica_k=(1, 5, 50)), replica=True)
    single = {k: evaluate_knn(train, test, 3, KnnConfig(k=(k,)))[f"k{k}"] for k in (1, 5, 50)}
    assert result["replica_best_on_test"] == max(single.values()) == single[result["replica"]["k"]]
    assert "replica_best_on_test" not in evaluate_knn(train, test, 3, KnnConfig())
