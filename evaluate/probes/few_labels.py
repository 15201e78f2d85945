"""Evaluate with few labels: logistic regression on frozen features, over several draws of the labels.

These figures stand in the results of the probes `linear` and `sweep`, and are the same in both: the paper's learning
rates are made for thousands of steps, and a sweep needs images to choose on, of which one label per class leaves none.

Shape legend: N training images, M test images, F features.
"""

import numpy as np
import torch

from ...core import InputError
from ..config import LinearEvalConfig
from ..features.extract import Features, draw_per_class
from .logistic import fit
from .metrics import top1
from .registry import FEW_LABELS, FewLabels, Figures
from .standardise import standardised

L2 = 1.0
"""There are no labels left to choose it by."""


def evaluate_few_labels(
    train: Features, test: Features, classes: int, amounts: tuple[float, ...], draws: int
) -> Figures:
    """Return `{"labels_1", …}`, the mean top-1 over the draws in percent; `few_labels` has every draw, see `FewLabels`.

    Features are standardised by all of train, which needs no labels. Draws are independent of each other; within one,
    a smaller amount's images are among a larger one's. A draw is the same one for every run, since it depends on the
    labels and its number alone, so differences between runs are paired over the draws, too.

    Args:
        amounts: a share of every class below 1, at least one image of it; a number of images per class from 1 on.

    Raises:
        InputError: a class has fewer images than an amount asks for.
    """
    check_amounts(train.labels_N.numpy(), amounts)

    # Standardise by all of train
    scaled = standardised(train)
    train = scaled.features
    test_MF = scaled.apply(test.plain_NF)

    # Fit to every draw, and test
    result: Figures = {}
    top1_of: dict[str, list[float]] = {}
    std_of: dict[str, float | None] = {}

    for amount in amounts:
        accuracies = []
        for draw in range(draws):
            chosen_N = _draw(train.labels_N.numpy(), amount, draw)
            regression = fit(train.plain_NF[chosen_N], train.labels_N[chosen_N], classes, L2)
            accuracies.append(top1(regression.logits(test_MF), test.labels_N))

        name = f"{FEW_LABELS}{amount:g}"
        result[name] = float(np.mean(accuracies))
        top1_of[name] = accuracies
        std_of[name] = float(np.std(accuracies, ddof=1)) if draws > 1 else None

    result["few_labels"] = FewLabels(draws=draws, top1=top1_of, std=std_of).model_dump()
    return result


def check_amounts(labels_N: np.ndarray, amounts: tuple[float, ...]) -> None:
    """Raise InputError if a class, of 0 … n-1, has fewer images than an amount asks for."""
    counts_C = np.bincount(labels_N)
    fewest = int(counts_C.argmin())
    most = max(amounts, default=0)
    if most > counts_C[fewest]:
        found = f"{most:g} per class, and class {fewest} has {counts_C[fewest]} training images"
        raise InputError(f"linear_eval.labels asks for {found}; ask for fewer")


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
