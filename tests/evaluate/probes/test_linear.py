import numpy as np
import pytest
import torch
from clsp.evaluate import Features, LinearEvalConfig, evaluate_linear, train_linear
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression


def features(seed: int, count: int = 600) -> Features:
    x, y = make_classification(
        count, 12, n_informative=8, n_classes=7, n_clusters_per_class=1, random_state=seed
    )
    return Features(torch.from_numpy(x).float(), None, torch.from_numpy(y))


def split(data: Features, at: int) -> tuple[Features, Features]:
    return tuple(
        Features(data.plain_NF[part], None, data.labels_N[part])
        for part in (slice(None, at), slice(at, None))
    )


def test_accuracy_is_that_of_logistic_regression_without_regularisation():
    train, test = split(features(0), 400)
    result = evaluate_linear(
        train, test, 7, LinearEvalConfig(epochs=60, milestones=(30, 45), lr=0.5, flip=False)
    )
    reference = LogisticRegression(C=1e6, max_iter=5000).fit(train.plain_NF, train.labels_N)
    assert result["top1"] == pytest.approx(
        100 * reference.score(test.plain_NF, test.labels_N), abs=3
    )
    low, high = result["top1_interval"]
    assert low < result["top1"] < high and result["top5"] >= result["top1"]


def test_the_first_epoch_is_sgd_without_momentum_or_decay():
    """One batch per epoch: two epochs of the softmax gradient by hand, ×0.1 after the milestone."""
    data = features(1, 30)
    config = LinearEvalConfig(epochs=2, milestones=(1,), batch_size=30, lr=1.0, flip=False)
    start = train_linear(data, 7, config.model_copy(update={"epochs": 1, "lr": 1e-12}))
    x = data.plain_NF.double().numpy()
    onehot = np.eye(7)[data.labels_N.numpy()]
    weight, bias = start.weight.detach().double().numpy(), start.bias.detach().double().numpy()
    for rate in (1.0, 0.1):
        logits = x @ weight.T + bias
        probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        gradient = (probabilities - onehot) / len(x)
        weight, bias = weight - rate * gradient.T @ x, bias - rate * gradient.sum(0)
    found = train_linear(data, 7, config)
    np.testing.assert_allclose(found.weight.detach().numpy(), weight, atol=1e-5)
    np.testing.assert_allclose(found.bias.detach().numpy(), bias, atol=1e-5)


def test_flips_are_drawn_per_image_between_the_two_features():
    data = features(2, 50)
    mirrored = Features(data.plain_NF, data.plain_NF + 1000, data.labels_N)
    from clsp.evaluate.probes.linear import with_flips

    flipped = (with_flips(mirrored, 0, 0) - data.plain_NF).mean(dim=1) > 500
    assert 10 < flipped.sum() < 40
    assert not torch.equal(flipped, (with_flips(mirrored, 0, 1) - data.plain_NF).mean(dim=1) > 500)
