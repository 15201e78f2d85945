"""Compare the quality of two sets' candidates: paired over the anchors, with fixed margins.

Shape legend: N anchors, K candidates per anchor, F features, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch.nn import functional

from ...core import InputError, Report
from ...shards import ShardSet
from ..features.encoder import Encoder
from ..features.shard_features import (
    NO_CLASS,
    anchor_images,
    candidate_images,
    class_numbers,
    image_features,
)
from ..probes.logistic import Regression
from .distances import frechet_of, kernel_distance
from .measures import diversity, fit_probe

RESAMPLES = 1000
FRECHET_RESAMPLES = 200
AGREEMENT_MARGIN = 1.0
FRECHET_MARGIN = 5.0
"""The most that label agreement may fall, in points, and the Fréchet distance rise, in percent of the reference's."""
HARDNESS = "hardness (cosine)"
DIVERSITY = "diversity"
AGREEMENT = "label agreement"
FRECHET = "frechet distance"


class MeasureRow(BaseModel):
    """Holds a measure of both sets, and the difference with its 95 % bootstrap interval.

    >>> row = MeasureRow(reference=0.5, other=0.6, difference=0.1, interval=(0.0, 0.2), margin=None, within=True)
    >>> row.interval
    (0.0, 0.2)
    """

    model_config = ConfigDict(frozen=True)

    reference: float
    other: float
    difference: float
    """In points; of the Fréchet distance in percent of the reference's."""
    interval: tuple[float, float]
    margin: float | None
    """The most that the measure may be worse; None where it is only shown."""
    within: bool


class KernelDistances(BaseModel):
    """Holds the kernel distance of both sets to the anchors, each with its deviation over subsets.

    >>> KernelDistances(reference=(0.1, 0.02), other=(0.3, 0.01)).other
    (0.3, 0.01)
    """

    model_config = ConfigDict(frozen=True)

    reference: tuple[float, float]
    other: tuple[float, float]


class QualityComparison(BaseModel):
    """Holds what was found of two sets; `equivalent` is True where every measure with a margin is within it.

    >>> row = MeasureRow(reference=1, other=2, difference=100, interval=(90, 110), margin=5, within=False)
    >>> distances = KernelDistances(reference=(0.1, 0.02), other=(0.3, 0.01))
    >>> found = QualityComparison(
    ...     anchors=40,
    ...     candidates=3,
    ...     resamples=100,
    ...     measures={"frechet distance": row},
    ...     kernel_distance=distances,
    ...     equivalent=False,
    ... )
    >>> found.measures["frechet distance"].within
    False
    """

    model_config = ConfigDict(frozen=True)

    anchors: int
    labelled_anchors: int | None = None
    """How many of them have a label, which the agreement is of; None without an agreement."""
    candidates: int
    resamples: int
    measures: dict[str, MeasureRow]
    kernel_distance: KernelDistances
    equivalent: bool


@dataclass(frozen=True)
class _Measured:
    """Holds the features of a set's candidates, and per measure its mean over the candidates of every anchor.

    A measure is NaN at anchors that it is not known of: without a label there is no agreement.
    """

    features_NKF: torch.Tensor
    per_anchor: dict[str, np.ndarray]


@dataclass(frozen=True)
class _Anchors:
    """Holds what both sets are measured by: the features of their anchors and, with labels, a probe fitted to them."""

    features_NF: torch.Tensor
    labels_N: torch.Tensor | None
    probe: Regression | None


def compare_quality(
    reference: ShardSet,
    other: ShardSet,
    encoder: Encoder,
    resamples: int = RESAMPLES,
    report: Report | None = None,
) -> QualityComparison:
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
    total = 2 * len(reference)

    def report_first(done: int) -> None:
        if report:
            report(done, total)

    def report_second(done: int) -> None:
        if report:
            report(len(reference) + done, total)

    # Measure both sets
    anchors = _anchors(reference, encoder)
    one = _measure(reference, encoder, anchors, report_first)
    two = _measure(other, encoder, anchors, report_second)

    # Compare them over resampled anchors
    weights_RN = _resamples(len(reference), resamples)
    rows = {name: _mean_row(name, one, two, weights_RN) for name in one.per_anchor}
    rows[FRECHET] = _frechet_row(
        anchors.features_NF, one, two, weights_RN[:FRECHET_RESAMPLES], encoder.device
    )
    distances = KernelDistances(
        reference=kernel_distance(anchors.features_NF, one.features_NKF[:, 0]),
        other=kernel_distance(anchors.features_NF, two.features_NKF[:, 0]),
    )

    labelled = None
    if anchors.labels_N is not None:
        labelled = int((anchors.labels_N != NO_CLASS).sum())

    return QualityComparison(
        anchors=len(reference),
        labelled_anchors=labelled,
        candidates=reference.candidates,
        resamples=resamples,
        measures=rows,
        kernel_distance=distances,
        equivalent=all(row.within for row in rows.values()),
    )


def _check_same_anchors(reference: ShardSet, other: ShardSet) -> None:
    one = reference.plan.source
    two = other.plan.source
    if one.digest != two.digest or not np.array_equal(
        reference.source_indices(), other.source_indices()
    ):
        raise InputError(
            f"{reference.root} and {other.root} have different anchors; expected two sets of the same anchors"
        )

    if reference.candidates != other.candidates or reference.candidates == 0:
        found = f"{reference.candidates} and {other.candidates}"
        raise InputError(
            f"{reference.root} and {other.root} have {found} candidates per anchor; expected equally many"
        )


def _anchors(shards: ShardSet, encoder: Encoder) -> _Anchors:
    features_NF = image_features(encoder, anchor_images(shards, encoder.batch))
    labels = class_numbers(shards)
    probe = None
    if labels is not None:
        probe = fit_probe(features_NF, labels)

    return _Anchors(features_NF, labels, probe)


def _measure(
    shards: ShardSet, encoder: Encoder, anchors: _Anchors, advance: Callable[[int], object]
) -> _Measured:
    """Extract the features of a set's candidates and measure them."""
    # Features
    candidates = shards.candidates
    width = anchors.features_NF.shape[1]
    parts = []
    for start, images in candidate_images(shards, max(1, encoder.batch // candidates)):
        part = encoder(images).view(-1, candidates, width)
        parts.append(part)
        advance(start + len(part))

    # Hardness and diversity
    features_NKF = torch.cat(parts)
    unit_NKF = functional.normalize(features_NKF, dim=2)
    unit_NF = functional.normalize(anchors.features_NF, dim=1)
    found = {HARDNESS: torch.einsum("nkf,nf->nk", unit_NKF, unit_NF).mean(1)}

    if candidates > 1:
        found[DIVERSITY] = diversity(unit_NKF).mean(1)

    # Agreement with the labels, where there are any
    if anchors.probe is not None and anchors.labels_N is not None:
        logits = anchors.probe.logits(features_NKF.flatten(0, 1))
        chosen_NK = logits.argmax(1).view(-1, candidates)
        agrees_NK = chosen_NK == anchors.labels_N[:, None]
        agreement_N = 100 * agrees_NK.double().mean(1)
        found[AGREEMENT] = agreement_N.where(anchors.labels_N != NO_CLASS, torch.nan)

    per_anchor = {name: values.double().numpy() for name, values in found.items()}
    return _Measured(features_NKF, per_anchor)


def _resamples(count: int, resamples: int) -> np.ndarray:
    """Draw how often each anchor counts: `(R, N)`."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples)


def _mean_row(
    name: str, reference: _Measured, other: _Measured, weights_RN: np.ndarray
) -> MeasureRow:
    """Compare the mean of a measure over the anchors that it is known of."""
    known_N = np.isfinite(reference.per_anchor[name])
    one = reference.per_anchor[name][known_N]
    two = other.per_anchor[name][known_N]

    # Each as often as it was drawn; a resample without any of few labelled anchors tells nothing
    counts_RN = weights_RN[:, known_N]
    counts_RN = counts_RN[counts_RN.any(axis=1)]
    drawn_R = counts_RN @ (two - one) / counts_RN.sum(axis=1)

    margin = -AGREEMENT_MARGIN if name == AGREEMENT else None
    return _row(one.mean(), two.mean(), two.mean() - one.mean(), drawn_R, margin)


def _frechet_row(
    real_NF: torch.Tensor,
    reference: _Measured,
    other: _Measured,
    weights_RN: np.ndarray,
    device: torch.device,
) -> MeasureRow:
    """Compare the Fréchet distances; differences are in percent of the reference's."""
    real_N1F = real_NF[:, None].double().to(device)
    one_NKF = reference.features_NKF.double().to(device)
    two_NKF = other.features_NKF.double().to(device)

    def distances(weights_N: np.ndarray) -> tuple[float, float]:
        real = _weighted(real_N1F, weights_N)
        one = frechet_of(real, _weighted(one_NKF, weights_N))
        two = frechet_of(real, _weighted(two_NKF, weights_N))
        return one, two

    # Of all anchors
    all_alike_N = np.ones(len(real_NF))
    one, two = distances(all_alike_N)
    difference = 100 * (two - one) / one

    # Of the resampled ones
    drawn_R2 = np.array([distances(weights_N) for weights_N in weights_RN])
    differences_R = drawn_R2[:, 1] - drawn_R2[:, 0]
    drawn_R = 100 * differences_R / one

    return _row(one, two, difference, drawn_R, FRECHET_MARGIN)


def _weighted(
    features_NKF: torch.Tensor, weights_N: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and covariance in which each anchor counts as often as it was drawn."""
    features = features_NKF.flatten(0, 1).double()
    weights = torch.from_numpy(weights_N).to(features).repeat_interleave(features_NKF.shape[1])
    mean = weights @ features / weights.sum()
    centred = features - mean
    return mean, (centred * weights[:, None]).T @ centred / (weights.sum() - 1)


def _row(
    one: float, two: float, difference: float, drawn_R: np.ndarray, margin: float | None
) -> MeasureRow:
    """Return a row with the interval of the drawn differences; a negative margin is one below, a positive one above."""
    low, high = np.quantile(drawn_R, [0.025, 0.975])
    if margin is None:
        within = True
    elif margin < 0:
        within = low > margin
    else:
        within = high < margin

    return MeasureRow(
        reference=float(one),
        other=float(two),
        difference=float(difference),
        interval=(float(low), float(high)),
        margin=margin,
        within=bool(within),
    )
