"""Whether the candidates of one set are as good as those of another: paired over the anchors, with fixed margins.

Shape legend: N anchors, K candidates per anchor, F features, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...core import InputError
from ...core.report import Report
from ...shards import ShardSet
from ..features.encoder import Encoder
from ..features.shard_features import anchor_images, candidate_images, class_numbers, image_features
from ..probes.logistic import Regression, fit
from .distances import frechet_of, kernel_distance
from .measures import PROBE_L2, diversity

RESAMPLES = 1000
FRECHET_RESAMPLES = 200
AGREEMENT_MARGIN = 1.0
FRECHET_MARGIN = 5.0
"""The most that label agreement may fall, in points, and the Fréchet distance rise, in percent of the reference's."""


@dataclass
class _Measured:
    features_NKF: torch.Tensor
    per_anchor: dict[str, np.ndarray]


def compare_quality(
    reference: ShardSet,
    other: ShardSet,
    encoder: Encoder,
    resamples: int = RESAMPLES,
    report: Report | None = None,
) -> dict[str, Any]:
    """Compare two sets of the same anchors: each measure of both, the difference and its 95 % bootstrap interval.

    Anchors are resampled, the same ones for both sets (for the Fréchet distance at most 200 times). `equivalent` is
    True where the interval of the label agreement (where there are labels) lies above -1 point and that of the Fréchet
    distance below +5 %; the other measures are shown without a margin.

    Args:
        report: called with (anchors measured, anchors of both sets).

    Raises:
        InputError: the sets have other anchors, or another number of candidates.
    """
    _check_same_anchors(reference, other)
    real_NF = image_features(encoder, anchor_images(reference, encoder.batch))
    labels = class_numbers(reference)
    probe = None if labels is None else fit(real_NF, labels, int(labels.max()) + 1, PROBE_L2)
    total = 2 * len(reference)
    one = _measure(
        reference, encoder, real_NF, labels, probe, lambda done: report and report(done, total)
    )
    two = _measure(
        other,
        encoder,
        real_NF,
        labels,
        probe,
        lambda done: report and report(total // 2 + done, total),
    )
    weights_RN = _resamples(len(reference), resamples)
    rows = {name: _mean_row(name, one, two, weights_RN) for name in one.per_anchor}
    rows["frechet distance"] = _frechet_row(
        real_NF, one, two, weights_RN[:FRECHET_RESAMPLES], encoder.device
    )
    kernel = [kernel_distance(real_NF, side.features_NKF[:, 0]) for side in (one, two)]

    return {
        "anchors": len(reference),
        "candidates": reference.candidates,
        "resamples": resamples,
        "measures": rows,
        "kernel_distance": {"reference": kernel[0], "other": kernel[1]},
        "equivalent": all(row["within"] for row in rows.values() if row["margin"] is not None),
    }


def _check_same_anchors(reference: ShardSet, other: ShardSet) -> None:
    one = reference.plan.source
    two = other.plan.source
    if one.digest != two.digest or not np.array_equal(
        reference.source_indices(), other.source_indices()
    ):
        raise InputError(
            f"{reference.root} and {other.root} have other anchors; expected two sets of the same ones"
        )

    if reference.candidates != other.candidates or reference.candidates == 0:
        found = f"{reference.candidates} and {other.candidates}"
        raise InputError(
            f"{reference.root} and {other.root} have {found} candidates per anchor; expected equally many"
        )


def _measure(
    shards: ShardSet,
    encoder: Encoder,
    real_NF: torch.Tensor,
    labels: torch.Tensor | None,
    probe: Regression | None,
    advance: Callable[[int], object],
) -> _Measured:
    parts = []
    for start, images in candidate_images(shards, max(1, encoder.batch // shards.candidates)):
        parts.append(encoder(images).view(-1, shards.candidates, real_NF.shape[1]))
        advance(start + len(parts[-1]))

    features = torch.cat(parts)
    unit = functional.normalize(features, dim=2)
    found = {
        "hardness (cosine)": torch.einsum(
            "nkf,nf->nk", unit, functional.normalize(real_NF, dim=1)
        ).mean(1)
    }

    if shards.candidates > 1:
        found["diversity"] = diversity(unit).mean(1)

    if probe is not None and labels is not None:
        chosen = probe.logits(features.flatten(0, 1)).argmax(1).view(len(features), -1)
        found["label agreement"] = 100 * (chosen == labels[:, None]).double().mean(1)

    return _Measured(features, {name: values.double().numpy() for name, values in found.items()})


def _resamples(count: int, resamples: int) -> np.ndarray:
    """How often each anchor is drawn: `(R, N)`."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples)


def _mean_row(
    name: str, reference: _Measured, other: _Measured, weights_RN: np.ndarray
) -> dict[str, Any]:
    one = reference.per_anchor[name]
    two = other.per_anchor[name]
    differences = weights_RN @ (two - one) / len(one)
    margin = -AGREEMENT_MARGIN if name == "label agreement" else None
    return _row(one.mean(), two.mean(), two.mean() - one.mean(), differences, margin)


def _frechet_row(
    real_NF: torch.Tensor,
    reference: _Measured,
    other: _Measured,
    weights_RN: np.ndarray,
    device: torch.device,
) -> dict[str, Any]:
    """Differences are in percent of the reference's distance."""
    real, *sides = (
        part.double().to(device)
        for part in (real_NF[:, None], reference.features_NKF, other.features_NKF)
    )

    def distances(weights_N: np.ndarray) -> np.ndarray:
        moments = _weighted(real, weights_N)
        return np.array([frechet_of(moments, _weighted(side, weights_N)) for side in sides])

    one, two = distances(np.ones(len(real_NF)))
    drawn = np.array([distances(weights) for weights in weights_RN])

    return _row(
        one, two, 100 * (two - one) / one, 100 * (drawn[:, 1] - drawn[:, 0]) / one, FRECHET_MARGIN
    )


def _weighted(
    features_NKF: torch.Tensor, weights_N: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance in which each anchor counts as often as it was drawn."""
    features = features_NKF.flatten(0, 1).double()
    weights = torch.from_numpy(weights_N).to(features).repeat_interleave(features_NKF.shape[1])
    mean = weights @ features / weights.sum()
    centred = features - mean
    return mean, (centred * weights[:, None]).T @ centred / (weights.sum() - 1)


def _row(
    one: float, two: float, difference: float, drawn_R: np.ndarray, margin: float | None
) -> dict[str, Any]:
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    within = margin is None or (low > margin if margin < 0 else high < margin)
    return {
        "reference": float(one),
        "other": float(two),
        "difference": float(difference),
        "interval": [float(low), float(high)],
        "margin": margin,
        "within": bool(within),
    }
