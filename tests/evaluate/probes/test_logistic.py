import numpy as np
import pytest
import torch
from clsp.evaluate import fit_path
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression


@pytest.fixture(scope="module")
def digits_features():
    x, y = load_digits(return_X_y=True)
    return x + 3.0, y  # far from centred, as rectified features are


@pytest.mark.slow
@pytest.mark.parametrize("l2", [1e4, 10.0, 1e-1])
def test_agrees_with_scikit_learn(digits_features, l2):
    x, y = digits_features
    found = next(
        iter(fit_path(torch.from_numpy(x).float(), torch.from_numpy(y), 10, [l2], 5000, 1e-7))
    )
    reference = LogisticRegression(C=1 / l2, max_iter=20000, tol=1e-7).fit(x, y)
    logits = found.logits(torch.from_numpy(x).float()).numpy()
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    np.testing.assert_allclose(probabilities, reference.predict_proba(x), atol=2e-3)
    np.testing.assert_allclose(
        found.weights_FC.T, reference.coef_, atol=5e-2 * np.abs(reference.coef_).max()
    )
    assert found.converged and found.l2 == l2


def test_a_path_ends_where_single_fits_end(digits_features):
    x, y = torch.from_numpy(digits_features[0]).float(), torch.from_numpy(digits_features[1])
    path = list(fit_path(x, y, 10, [1.0, 1e3], 5000, 1e-6))
    assert [fitted.l2 for fitted in path] == [1e3, 1.0]  # strongest first
    alone = next(iter(fit_path(x, y, 10, [1.0], 5000, 1e-6)))
    torch.testing.assert_close(
        path[1].logits(x).softmax(1), alone.logits(x).softmax(1), atol=2e-3, rtol=0
    )


def test_features_that_are_constant_or_repeated_do_no_harm():
    torch.manual_seed(0)
    x = torch.randn(60, 3)
    x = torch.cat([x, x[:, :1], torch.full((60, 1), 7.0)], dim=1)
    y = (x[:, 0] > 0).long()
    fitted = next(iter(fit_path(x, y, 2, [1e-6])))
    assert torch.equal(fitted.logits(x).argmax(1), y)
