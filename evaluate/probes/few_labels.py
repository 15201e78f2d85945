"""Evaluate with few labels: logistic regression on frozen features, over several draws of the labels.

These figures stand in the results of the probes `linear` and `sweep`.

Shape legend: N training images, M test images, F features.
"""

import numpy as np
import torch

from ...core import InputError
from ..config import LinearEvalConfig
from ..features.extract import Features, draw_per_class
from .logistic import fit
from .metrics import top1
from .registry import FEW_LABELS, Figures
from .standardise import standardised

L2 = 1.0
"""There are no labels left to choose it by."""


def evaluate_few_labels(
    train: Features, test: Features, classes: int, amounts: tuple[float, ...], draws: int
) -> Figures:
    """Return `{"labels_1", …}`, the mean top-1 over the draws in percent; `few_labels` has the deviations over them.

    Features are standardised by all of train, which needs no labels. A draw is the same one for every run, since it
    depends on the labels and its number alone, so differences between runs are paired over the draws, too.

    Args:
        amounts: a share of every class below 1, at least one image of it; a number of images per class from 1 on.

    Raises:
        InputError: a class has fewer images than an amount asks for.
    """
    # Check that every class has so many
    smallest = int(np.bincount(train.labels_N.numpy()).min())
    if max(amounts) > smallest:
        found = f"{max(amounts):g} per class, and a class has {smallest} training images"
        raise InputError(f"linear_eval.labels asks for {found}; ask for fewer")

    # Standardise by all of train
    scaled = standardised(train)
    train = scaled.features
    test_MF = scaled.apply(test.plain_NF)

    # Fit to every draw, and test
    result: Figures = {}
    deviations = {}
    for amount in amounts:
        accuracies = []
        for draw in range(draws):
            chosen_N = _draw(train.labels_N.numpy(), amount, draw)
            regression = fit(train.plain_NF[chosen_N], train.labels_N[chosen_N], classes, L2)
            accuracies.append(top1(regression.logits(test_MF), test.labels_N))

        name = f"{FEW_LABELS}{amount:g}"
        result[name] = float(np.mean(accuracies))
        deviations[name] = float(np.std(accuracies, ddof=1)) if draws > 1 else None

    result["few_labels"] = {"draws": draws, "std": deviations}
    return result


def asked_for(train: Features, test: Features, classes: int, config: LinearEvalConfig) -> Figures:
    """Return `evaluate_few_labels` of the amounts that the recipe asks for, nothing without any."""
    if not config.labels:
        return {}
    return evaluate_few_labels(train, test, classes, config.labels, config.label_draws)


def _draw(labels_N: np.ndarray, amount: float, draw: int) -> torch.Tensor:
    """Draw images of every class: a share of them below 1, else so many."""

    def count(size: int) -> int:
        return max(1, round(amount * size)) if amount < 1 else int(amount)

    return torch.from_numpy(draw_per_class(labels_N, count, "few labels", draw))
