"""Compute accuracies and their intervals.

Shape legend: M test images, K ranks, C classes.
"""

import math

import numpy as np
import torch

from .registry import Figures

Z_95 = 1.959963984540054


def accuracy_with_interval(name: str, hits_M: np.ndarray) -> Figures:
    """Return `{name, name_interval}` in percent; the interval is Wilson's at 95 %, over the test images."""
    count = len(hits_M)
    share = float(np.mean(hits_M))

    # (p + z²/2n ± z·sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    width = 1 + Z_95**2 / count
    centre = (share + Z_95**2 / (2 * count)) / width
    variance = share * (1 - share) / count + Z_95**2 / (4 * count**2)
    half = Z_95 / width * math.sqrt(variance)
    interval = [100 * (centre - half), 100 * (centre + half)]

    return {name: 100 * share, f"{name}_interval": interval}


def mean_per_class(hits_M: np.ndarray, labels_M: np.ndarray) -> Figures:
    """Return `{mean_per_class, mean_per_class_interval}`: the mean over the classes of their accuracies, in percent.

    The interval is the normal one at 95 %, from the binomial variance of every class's accuracy.
    """
    # The classes that occur
    counts_C = np.bincount(labels_M)
    hits_C = np.bincount(labels_M, weights=hits_M)
    occurs_C = counts_C > 0
    counts_C = counts_C[occurs_C]
    hits_C = hits_C[occurs_C]

    # Their mean, and its interval: a class without a miss is not certain
    shares_C = hits_C / counts_C
    mean = float(shares_C.mean())
    smoothed_C = (hits_C + 1) / (counts_C + 2)
    variance = float(np.sum(smoothed_C * (1 - smoothed_C) / counts_C))
    half = Z_95 * math.sqrt(variance) / len(counts_C)
    interval = [100 * max(0.0, mean - half), 100 * min(1.0, mean + half)]

    return {"mean_per_class": 100 * mean, "mean_per_class_interval": interval}


def top1(logits_MC: torch.Tensor, labels_M: torch.Tensor) -> float:
    """Return the share of images whose class the logits rank highest, in percent."""
    return 100 * float((logits_MC.argmax(dim=1).cpu() == labels_M).double().mean())


def accuracies(logits_MC: torch.Tensor, labels_M: torch.Tensor) -> Figures:
    """Return the `classification` by the classes that the logits rank highest."""
    classes = logits_MC.shape[1]
    ranked_MK = logits_MC.topk(min(5, classes), dim=1).indices
    return classification(ranked_MK.cpu().numpy(), labels_M.numpy(), classes)


def classification(ranked_MK: np.ndarray, labels_M: np.ndarray, classes: int) -> Figures:
    """Return top-1 with its interval, mean per class and, with more than five classes, top-5.

    Args:
        ranked_MK: classes from the likeliest on, at least one and at most five per image.
    """
    hits_MK = ranked_MK == labels_M[:, None]
    result = accuracy_with_interval("top1", hits_MK[:, 0])
    result |= mean_per_class(hits_MK[:, 0], labels_M)
    if classes > 5:
        result["top5"] = 100 * float(hits_MK.any(axis=1).mean())

    return result
