"""Tell how well measures that need no labels find the right candidates, on sets whose labels are known.

Shape legend: N anchors, K candidates per anchor.
"""

from collections.abc import Mapping

import numpy as np

from ...shards.reading.measures import find_measure

RIGHT = "agreement"
"""The measure by which a candidate is right (1) or wrong (0), and NaN where its anchor has no label."""

AUROC_NOTE = (
    "how often a measure prefers the right one of a right and a wrong candidate (right: the probe's class is the "
    "anchor's label); 1 is always, 0.5 is chance, and below 0.5 its better end has more wrong ones"
)


def areas_under_roc(scores: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the area under the ROC curve of every label-free measure, right against wrong candidates.

    Above 0.5 the measure's better end has more of the right candidates. Those of anchors without a label do not
    count.

    Args:
        scores: measure → `(N, K)`.

    Returns:
        measure → area; nothing where no label is known, or all candidates are right, or all are wrong.

    >>> areas_under_roc({"agreement": np.array([[0, 1], [0, 1]]), "anchor_rank": np.array([[9, 1], [2, 3]])})
    {'anchor_rank': 0.75}
    """
    from sklearn.metrics import roc_auc_score

    if RIGHT not in scores:
        return {}

    areas = {}
    right_NK = scores[RIGHT]
    for name, values_NK in scores.items():
        measure = find_measure(name)
        if measure.uses_labels:
            continue

        counts_NK = np.isfinite(right_NK) & np.isfinite(values_NK)
        right = right_NK[counts_NK] == 1
        if right.all() or not right.any():
            continue

        values = values_NK[counts_NK]
        oriented = values if measure.better == "higher" else -values
        areas[name] = float(roc_auc_score(right, oriented))

    return areas
