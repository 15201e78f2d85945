"""The L-BFGS of a device against scipy's and scikit-learn's."""

import numpy as np
import pytest
import torch
from clsp.evaluate.probes import logistic
from clsp.evaluate.probes.device_lbfgs import LOOKED, _State, minimise_on_device
from scipy.optimize import rosen, rosen_der
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from waits import DEVICE, counted_waits, needs_pretended_device


@pytest.fixture(scope="module")
def digits_features():
    x, y = load_digits(return_X_y=True)
    return torch.from_numpy(x).float() + 3, torch.from_numpy(y)


@pytest.mark.parametrize("l2", [1e4, 10.0])
def test_a_regression_is_scikit_learns(digits_features, monkeypatch, l2):
    x_NF, y_N = digits_features
    monkeypatch.setattr(logistic._Problem, "minimise", logistic._Problem.minimise_on_device)
    found = next(iter(logistic.fit_path(x_NF, y_N, 10, [l2], 5000, 1e-6)))
    reference = LogisticRegression(C=1 / l2, max_iter=20000, tol=1e-7).fit(
        x_NF.double().numpy(), y_N
    )
    probabilities = found.logits(x_NF).softmax(dim=1).numpy()
    assert found.converged
    np.testing.assert_allclose(
        probabilities, reference.predict_proba(x_NF.double().numpy()), atol=4e-3
    )


def test_a_valley_that_bends_is_walked_to_its_end():
    """Rosenbrock's function, with its minimum at (1, …, 1): steps have to be halved on the way."""

    def objective(point_P):
        point = point_P.numpy()
        return torch.tensor(rosen(point)), torch.from_numpy(rosen_der(point))

    found_P, is_reached = minimise_on_device(objective, torch.full((4,), -0.5).double(), 500, 1e-6)
    assert is_reached
    np.testing.assert_allclose(found_P.numpy(), np.ones(4), atol=1e-4)
    _, is_reached = minimise_on_device(objective, torch.full((4,), -0.5).double(), 5, 1e-6)
    assert not is_reached


def test_a_minimum_that_is_reached_is_not_left():
    middle_P = torch.tensor([2.0, 3.0], dtype=torch.float64)
    state = _State(lambda p: ((p - middle_P).square().sum(), 2 * (p - middle_P)), middle_P, 1e-6)
    for _ in range(3):
        state.advance()
    assert bool(state.is_reached) and torch.equal(state.point_P, middle_P)


@needs_pretended_device
def test_an_iteration_waits_for_nothing(digits_features):
    x_NF, y_N = digits_features
    problem = logistic._Problem(x_NF.to(DEVICE), y_N.to(DEVICE), 10)

    def waits(iterations: int) -> int:
        zeros = np.zeros((64, 10)), np.zeros(10)
        with counted_waits() as found:
            problem.minimise_on_device(1.0, np.ones(64), *zeros, iterations // 2, 0.0)
        return found.total()

    assert waits(LOOKED - 2) == waits(2)  # the scale, the start, the end
    assert waits(3 * LOOKED) == waits(2) + 2  # two looks more
