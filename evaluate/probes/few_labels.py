"""Linear evaluation with few labels: logistic regression on frozen features, over several draws of the labels.

Shape legend: N images, F features.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...core import InputError
from ..features.extract import Features, draw_per_class
from .logistic import fit
from .metrics import top1
from .sweep import standardised

L2 = 1.0
"""There are no labels left to choose it by."""


def evaluate_few_labels(
    train: Features, test: Features, classes: int, amounts: tuple[float, ...], draws: int
) -> dict[str, Any]:
    """Return `{"labels_1", …}`, the mean top-1 over the draws in percent; `few_labels` has the deviations over them.

    Features are standardised by all of train, which needs no labels. A draw is the same one for every run, since it
    depends on the labels and its number alone, so differences between runs are paired over the draws, too.

    Args:
        amounts: a share of every class below 1, at least one image of it; a number of images per class from 1 on.

    Raises:
        InputError: a class has fewer images than an amount asks for.
    """
    smallest = int(np.bincount(train.labels_N.numpy()).min())
    if max(amounts) > smallest:
        found = f"{max(amounts):g} per class, and a class has {smallest} training images"
        raise InputError(f"linear_eval.labels asks for {found}; ask for fewer")

    train, mean_F, std_F = standardised(train)
    test_MF = (test.plain_NF - mean_F) / std_F
    result: dict[str, Any] = {}
    deviations = {}

    for amount in amounts:
        accuracies = []
        for draw in range(draws):
            chosen = torch.from_numpy(
                draw_per_class(train.labels_N.numpy(), _count(amount), "few labels", draw)
            )
            regression = fit(train.plain_NF[chosen], train.labels_N[chosen], classes, L2)
            accuracies.append(top1(regression.logits(test_MF), test.labels_N))

        name = f"labels_{amount:g}"
        result[name] = float(np.mean(accuracies))
        deviations[name] = float(np.std(accuracies, ddof=1)) if draws > 1 else None

    return {**result, "few_labels": {"draws": draws, "std": deviations}}


def _count(amount: float) -> Callable[[int], int]:
    """Return how many images of a class of some size an amount means."""
    if amount < 1:
        return lambda size: max(1, round(amount * size))
    return lambda size: int(amount)
