"""Tell how well measures that need no labels find the right candidates, on sets whose labels are known.

Shape legend: N anchors, K candidates per anchor.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...shards.reading.measures import find_measure

RIGHT = "agreement"
"""The measure by which a candidate is right (1) or wrong (0), and NaN where its anchor has no label."""

AUROC_NOTE = (
    "how often a measure prefers the right one of a right and a wrong candidate (right: the probe's class is the "
    "anchor's label), ± its standard error; 1 is always, 0.5 is chance, below 0.5 its better end has more wrong ones"
)


@dataclass(frozen=True)
class AreaUnderRoc:
    """Holds the area under the ROC curve of a measure, and its standard error over the anchors.

    >>> AreaUnderRoc(area=0.75, error=0.02).error
    0.02
    """

    area: float
    error: float | None
    """None where right or wrong candidates are of a single anchor."""


def areas_under_roc(scores: Mapping[str, np.ndarray]) -> dict[str, AreaUnderRoc]:
    """Return the area under the ROC curve of every label-free measure, right against wrong candidates.

    Above 0.5 the measure's better end has more of the right candidates. Those of anchors without a label do not
    count.

    Args:
        scores: measure → `(N, K)`.

    Returns:
        measure → area; nothing where no label is known, or all candidates are right, or all are wrong.

    >>> scores = {"agreement": np.array([[0, 1], [0, 1]]), "anchor_rank": np.array([[9, 1], [2, 3]])}
    >>> areas_under_roc(scores)["anchor_rank"].area
    0.75
    """
    from sklearn.metrics import roc_auc_score

    if RIGHT not in scores:
        return {}

    areas = {}
    right_NK = scores[RIGHT]
    anchors_NK = np.arange(len(right_NK))[:, None].repeat(right_NK.shape[1], axis=1)

    for name, values_NK in scores.items():
        measure = find_measure(name)
        if measure.uses_labels:
            continue

        # The candidates that count
        counts_NK = np.isfinite(right_NK) & np.isfinite(values_NK)
        right = right_NK[counts_NK] == 1
        if right.all() or not right.any():
            continue

        # Larger is better
        values = values_NK[counts_NK]
        oriented = values if measure.better == "higher" else -values
        area = float(roc_auc_score(right, oriented))
        error = _standard_error(oriented, right, anchors_NK[counts_NK], area)
        areas[name] = AreaUnderRoc(area, error)

    return areas


def _standard_error(
    values: np.ndarray, right: np.ndarray, anchors: np.ndarray, area: float
) -> float | None:
    """Return the standard error of an area whose candidates come in groups of one anchor each (Obuchowski 1997).

    Candidates of an anchor are alike, so that they tell less than as many of different anchors.
    """
    from scipy.stats import rankdata

    # Per right candidate the share of wrong ones below it, per wrong one the share of right ones above; ties are halves
    ranks = rankdata(values)
    of_right = right.sum()
    of_wrong = len(right) - of_right
    won = np.empty(len(values))
    won[right] = (ranks[right] - rankdata(values[right])) / of_wrong
    won[~right] = 1 - (ranks[~right] - rankdata(values[~right])) / of_right

    # Their excess over the mean, summed per anchor
    count = int(anchors.max()) + 1
    excess = won - area
    right_N = np.bincount(anchors[right], excess[right], count)
    wrong_N = np.bincount(anchors[~right], excess[~right], count)
    with_right = len(np.unique(anchors[right]))
    with_wrong = len(np.unique(anchors[~right]))
    groups = len(np.unique(anchors))
    if min(with_right, with_wrong) < 2:
        return None

    # Variance over right and over wrong candidates, and their covariance within anchors
    among_right = with_right / (with_right - 1) * (right_N**2).sum() / of_right**2
    among_wrong = with_wrong / (with_wrong - 1) * (wrong_N**2).sum() / of_wrong**2
    together = groups / (groups - 1) * (right_N * wrong_N).sum() / (of_right * of_wrong)
    return float(np.sqrt(max(0.0, among_right + among_wrong + 2 * together)))
