"""Fit multinomial logistic regressions by L-BFGS, over many strengths of l2 regularisation.

Shape legend: N images, F features, C classes.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...core import to_device
from ..features.encoder import compute_device
from .device_lbfgs import minimise_on_device


@dataclass(frozen=True)
class Regression:
    """Holds a fitted regression: weights `(F, C)`, bias `(C,)`, its l2 and whether L-BFGS converged."""

    weights_FC: torch.Tensor
    bias_C: torch.Tensor
    l2: float
    converged: bool

    def logits(self, features_NF: torch.Tensor) -> torch.Tensor:
        """Return logits `(N, C)`."""
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
        tolerance: a fit ends when no component of the gradient of the objective divided by N is larger, in the units of
            equal curvature that L-BFGS works in.
    """
    device = compute_device()
    mean_F, basis_FF, spread_F = _principal(features_NF)
    features = ((features_NF - mean_F) @ basis_FF).to(device)
    problem = _Problem(features, labels_N.to(device), classes)
    minimise = problem.minimise_on_device if device.type == "cuda" else problem.minimise
    weights_FC = np.zeros((features.shape[1], classes))
    bias_C = np.zeros(classes)

    for l2 in sorted(strengths, reverse=True):
        # Steps in units in which the objective curves alike in every direction; its minimum is where it was.
        scale_F = 1 / np.sqrt(CURVATURE * spread_F + l2 / len(features) + 1e-12)
        weights_FC, bias_C, converged = minimise(
            l2, scale_F, weights_FC, bias_C, iterations, tolerance
        )
        rotated = basis_FF @ torch.from_numpy(weights_FC).float()
        bias = torch.from_numpy(bias_C).float() - mean_F @ rotated
        yield Regression(rotated, bias, l2, converged)


CHUNK = 1 << 16
CURVATURE = 0.1
"""The order of p(1 - p), by which the second derivative of the cross-entropy is smaller than the features' variance."""


def _principal(features_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Return the mean `(F,)`, orthonormal principal axes `(F, F)` and the variances along them.

    The bias takes up the mean and the norm of the weights does not change with the axes, so a regression on them has
    the same solutions; L-BFGS finds them in a tenth of the steps.
    """
    mean_F = features_NF.mean(dim=0)
    products = torch.zeros(len(mean_F), len(mean_F), dtype=torch.float64)
    for part in features_NF.split(CHUNK):  # all of them in float64 could be larger than the memory
        centred = (part - mean_F).double()
        products += centred.T @ centred

    values, basis = torch.linalg.eigh(products / len(features_NF))
    return mean_F, basis.float(), values.clamp_min(0).numpy()


def _in_units(
    scale_F: np.ndarray, weights_FC: np.ndarray, bias_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the units `(F + 1, 1)`, and in them weights and bias as one matrix, the bias in its last row."""
    scale = np.append(scale_F, 1.0)[:, None]
    return scale, np.vstack([weights_FC, bias_C]) / scale


class _Problem:
    """Holds the images of a regression, and minimises its objective."""

    def __init__(self, features_NF: torch.Tensor, labels_N: torch.Tensor, classes: int):
        self.features_NF = features_NF
        self.labels_N = labels_N
        self.classes = classes
        self.rows = torch.arange(len(labels_N), device=labels_N.device)

    def minimise(
        self,
        l2: float,
        scale_F: np.ndarray,
        weights_FC: np.ndarray,
        bias_C: np.ndarray,
        iterations: int,
        tolerance: float,
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Return weights, bias, and True if L-BFGS converged.

        Args:
            scale_F: the units in which it takes its steps.
        """
        from scipy.optimize import minimize

        scale, start = _in_units(scale_F, weights_FC, bias_C)

        def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
            loss, gradient = self.loss(flat.reshape(start.shape) * scale, l2)
            return loss, (gradient * scale).ravel()

        # Minimise, from where the last l2 ended
        options = {
            "maxiter": iterations,
            "maxfun": 2 * iterations,
            "gtol": tolerance,
            "ftol": 1e-10,
            "maxcor": 20,
        }
        found: Any = minimize(
            objective, start.ravel(), jac=True, method="L-BFGS-B", options=options
        )
        point = found.x.reshape(start.shape) * scale

        return point[:-1], point[-1], bool(found.success)

    def minimise_on_device(
        self,
        l2: float,
        scale_F: np.ndarray,
        weights_FC: np.ndarray,
        bias_C: np.ndarray,
        iterations: int,
        tolerance: float,
    ) -> tuple[np.ndarray, np.ndarray, bool]:
        """Return what `minimise` does, by an L-BFGS that lets a GPU go on without an answer from the host."""
        device = self.features_NF.device
        units, begun = _in_units(scale_F, weights_FC, bias_C)
        scale = to_device(torch.from_numpy(units), device)
        start = to_device(torch.from_numpy(begun), device)

        def objective(flat: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            parameters = (flat.view_as(start) * scale).float()
            loss, gradient = self.loss_and_gradient(parameters, l2)
            return loss.double(), (gradient.double() * scale).flatten()

        found, converged = minimise_on_device(objective, start.flatten(), 2 * iterations, tolerance)
        point = (found.view_as(start) * scale).cpu().numpy()

        return point[:-1], point[-1], converged

    def loss(self, point: np.ndarray, l2: float) -> tuple[float, np.ndarray]:
        """Return the objective divided by N at weights and bias `(F + 1, C)`, and its gradient, as scipy takes them."""
        parameters = torch.from_numpy(point).float().to(self.features_NF.device)
        loss, gradient = self.loss_and_gradient(parameters, l2)
        return float(loss), gradient.double().cpu().numpy()

    def loss_and_gradient(
        self, parameters: torch.Tensor, l2: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the objective divided by N at weights and bias `(F + 1, C)` float32, and its gradient."""
        weights_FC = parameters[:-1]
        bias_C = parameters[-1]
        count = len(self.rows)

        # Cross-entropy and regularisation
        logits_NC = torch.addmm(bias_C, self.features_NF, weights_FC)
        log_probabilities_NC = functional.log_softmax(logits_NC, dim=1)
        cross_entropy = functional.nll_loss(log_probabilities_NC, self.labels_N)
        loss = cross_entropy + l2 / (2 * count) * weights_FC.square().sum()

        # Gradient: of the cross-entropy it is the probability, less one at the label
        errors_NC = log_probabilities_NC.exp_()
        errors_NC[self.rows, self.labels_N] -= 1
        errors_NC /= count
        of_weights_FC = self.features_NF.T @ errors_NC + l2 / count * weights_FC
        gradient = torch.cat([of_weights_FC, errors_NC.sum(0, keepdim=True)])

        return loss, gradient


def fit(
    features_NF: torch.Tensor,
    labels_N: torch.Tensor,
    classes: int,
    l2: float,
    iterations: int = 1000,
) -> Regression:
    """Fit one l2; see `fit_path`."""
    return next(fit_path(features_NF, labels_N, classes, [l2], iterations))
