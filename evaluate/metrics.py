"""Accuracies and their intervals."""

import math

import numpy as np

Z_95 = 1.959963984540054


def accuracy_with_interval(name: str, hits_N: np.ndarray) -> dict[str, object]:
    """`{name, name_interval}` in percent; the interval is Wilson's at 95 %, over the test images."""
    count, share = len(hits_N), float(np.mean(hits_N))
    centre = (share + Z_95**2 / (2 * count)) / (1 + Z_95**2 / count)
    half = Z_95 / (1 + Z_95**2 / count) * math.sqrt(share * (1 - share) / count + Z_95**2 / (4 * count**2))
    return {name: 100 * share, f"{name}_interval": [100 * (centre - half), 100 * (centre + half)]}
