"""Multinomial logistic regression by L-BFGS, over many strengths of l2 regularisation.

Shape legend: N images, F features, C classes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional


@dataclass(frozen=True)
class Regression:
    """A fitted regression: weights `(F, C)`, bias `(C,)`, its l2 and whether L-BFGS converged."""

    weights_FC: torch.Tensor
    bias_C: torch.Tensor
    l2: float
    converged: bool

    def logits(self, features_NF: torch.Tensor) -> torch.Tensor:
        """Logits `(N, C)`."""
        return features_NF @ self.weights_FC + self.bias_C


def fit_path(
    features_NF: torch.Tensor,
    labels_N: torch.Tensor,
    classes: int,
    strengths: Iterable[float],
    iterations: int = 1000,
    tolerance: float = 1e-4,
) -> Iterator[Regression]:
    """Fit every l2 from the strongest to the weakest, each from the one before it.

    Minimises `Σ_n cross-entropy(n) + l2/2 · |W|²`, with the bias not regularised: scikit-learn's `LogisticRegression`
    with `C = 1 / l2`.

    Args:
        iterations: the most of one fit.
        tolerance: a fit ends when no component of the gradient of the objective divided by N is larger.
    """
    from scipy.optimize import minimize

    device = "cuda" if torch.cuda.is_available() else "cpu"
    count, width = features_NF.shape
    features, labels = features_NF.float().to(device), labels_N.to(device)
    point = np.zeros((width + 1) * classes)
    for l2 in sorted(strengths, reverse=True):

        def objective(flat: np.ndarray, l2: float = l2) -> tuple[float, np.ndarray]:
            parameters = torch.from_numpy(flat.astype(np.float32)).view(width + 1, classes).to(device)
            weights = parameters[:-1]
            log_probabilities = functional.log_softmax(torch.addmm(parameters[-1], features, weights), dim=1)
            loss = functional.nll_loss(log_probabilities, labels) + l2 / (2 * count) * weights.square().sum()
            errors = log_probabilities.exp_()
            errors[torch.arange(count, device=device), labels] -= 1
            errors /= count
            gradient = torch.cat([features.T @ errors + l2 / count * weights, errors.sum(0, keepdim=True)])
            return float(loss), gradient.double().cpu().numpy().ravel()

        options = {"maxiter": iterations, "maxfun": 2 * iterations, "gtol": tolerance, "ftol": 1e-9, "maxcor": 20}
        found: Any = minimize(objective, point, jac=True, method="L-BFGS-B", options=options)
        point = found.x
        fitted = torch.from_numpy(point.astype(np.float32)).view(width + 1, classes)
        yield Regression(fitted[:-1], fitted[-1], l2, bool(found.success))


def fit(
    features_NF: torch.Tensor, labels_N: torch.Tensor, classes: int, l2: float, iterations: int = 1000
) -> Regression:
    """Fit one l2; see `fit_path`."""
    return next(fit_path(features_NF, labels_N, classes, [l2], iterations))
