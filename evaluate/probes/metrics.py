"""Accuracies and their intervals.

Shape legend: M test images, K ranks.
"""

import math
from typing import Any

import numpy as np
import torch

Z_95 = 1.959963984540054


def accuracy_with_interval(name: str, hits_M: np.ndarray) -> dict[str, Any]:
    """`{name, name_interval}` in percent; the interval is Wilson's at 95 %, over the test images."""
    count = len(hits_M)
    share = float(np.mean(hits_M))
    centre = (share + Z_95**2 / (2 * count)) / (1 + Z_95**2 / count)
    half = (
        Z_95
        / (1 + Z_95**2 / count)
        * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    )
    return {name: 100 * share, f"{name}_interval": [100 * (centre - half), 100 * (centre + half)]}


def mean_per_class(hits_M: np.ndarray, labels_M: np.ndarray) -> dict[str, Any]:
    """`{mean_per_class, mean_per_class_interval}`: the mean over the classes of their accuracies, in percent.

    The interval is the normal one at 95 %, from the binomial variance of every class's accuracy.
    """
    counts = np.bincount(labels_M)
    counts, hits = counts[counts > 0], np.bincount(labels_M, weights=hits_M)[counts > 0]
    shares = hits / counts
    smoothed = (hits + 1) / (counts + 2)  # a class without a miss is not certain
    half = Z_95 * math.sqrt(float(np.sum(smoothed * (1 - smoothed) / counts))) / len(counts)
    mean = float(shares.mean())
    interval = [100 * max(0.0, mean - half), 100 * min(1.0, mean + half)]

    return {"mean_per_class": 100 * mean, "mean_per_class_interval": interval}


def top1(logits_MC: torch.Tensor, labels_M: torch.Tensor) -> float:
    """Return the share of images whose class the logits rank highest, in percent."""
    return 100 * float((logits_MC.argmax(dim=1).cpu() == labels_M).double().mean())


def accuracies(logits_MC: torch.Tensor, labels_M: torch.Tensor) -> dict[str, Any]:
    """`classification` of the classes that the logits rank highest."""
    ranked = logits_MC.topk(min(5, logits_MC.shape[1]), dim=1).indices
    return classification(ranked.cpu().numpy(), labels_M.numpy(), logits_MC.shape[1])


def classification(ranked_MK: np.ndarray, labels_M: np.ndarray, classes: int) -> dict[str, Any]:
    """Top-1 with its interval, mean per class and, with more than five classes, top-5.

    Args:
        ranked_MK: classes from the likeliest on, at least one and at most five per image.
    """
    hits_MK = ranked_MK == labels_M[:, None]
    result = {
        **accuracy_with_interval("top1", hits_MK[:, 0]),
        **mean_per_class(hits_MK[:, 0], labels_M),
    }

    if classes > 5:
        result["top5"] = 100 * float(hits_MK.any(axis=1).mean())

    return result
