"""Measure the quality of a shard set: every candidate, and the set as a whole, in the features of an encoder.

Shape legend: N anchors, K candidates per anchor, B candidates of a batch, M test images, F features, C classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...core import InputError, Report, permutation
from ...shards import ImageSource, ShardSet
from ...train import PretrainConfig, Views
from ..features.encoder import Encoder
from ..features.extract import ahead, decoded, hold_out
from ..features.shard_features import (
    NO_CLASS,
    anchor_images,
    candidate_images,
    class_numbers,
    image_features,
)
from ..probes.logistic import Regression, fit
from .auroc import areas_under_roc
from .distances import Moments, frechet_distance, kernel_distance, precision_recall
from .facts import QualityFacts, SuspiciousPair
from .nearest import nearest_images, search_anchors

SAMPLE = 5000
"""Images of either kind for the kernel distance, precision and recall: all pairs of them are looked at."""
PROBE_L2 = 1.0
SHOWN = 24
BINS = 40


@dataclass(frozen=True)
class Quality:
    """Holds what was measured of a set: of every candidate, and of the set as a whole.

    >>> quality = Quality({"cosine": np.zeros((4, 2), np.float32)}, QualityFacts(means={"cosine": 0.0}))
    >>> quality.scores["cosine"].shape
    (4, 2)
    """

    scores: dict[str, np.ndarray]
    """Measure → `(N, K)` float32, of those in `shards/reading/measures.py`.

    A measure that needs a label is NaN at the candidates of anchors without one.
    """
    facts: QualityFacts


@dataclass(frozen=True)
class _RealFeatures:
    """Holds the real images that candidates are measured against, as features, and what is known of them."""

    anchors_NF: torch.Tensor
    """Unit features of the anchors, on the encoder's device."""
    test_MF: torch.Tensor | None
    """Unit features of test images, there too."""
    labels_N: torch.Tensor | None
    """Classes of the anchors, `NO_CLASS` at those without a label; None where no measure can use them."""
    probe: Regression | None
    """Fitted to the real anchors that have labels."""


@dataclass(frozen=True)
class _Measured:
    """Holds the scores of candidates, and the places of the images that they are nearest to: measure → `(N, K)`."""

    scores: dict[str, np.ndarray]
    nearest: dict[str, np.ndarray]


def measure_quality(
    shards: ShardSet,
    encoder: Encoder,
    pretrain: PretrainConfig,
    test: ImageSource | None = None,
    report: Report | None = None,
) -> Quality:
    """Measure every candidate of a set.

    Args:
        pretrain: whose augmentations the candidates are compared with.
        test: test images to look for among the candidates.
        report: called with (anchors done, anchors).

    Raises:
        InputError: the set holds no candidate.
    """
    if shards.candidates == 0 or len(shards) < 2:
        found = f"{len(shards)} anchors with {shards.candidates} candidates each"
        raise InputError(
            f"{shards.root} holds {found}; measuring takes at least two anchors and a candidate of each"
        )

    # The candidates, one by one
    real_NF = image_features(encoder, anchor_images(shards, encoder.batch))
    real_features = _real_features(shards, encoder, real_NF, test)
    measured, made, sample = _measure_candidates(shards, encoder, real_features, report)

    # The set as a whole, beside some of the anchors and beside ordinary views of them
    sampled_N = permutation(len(real_NF), "quality anchors")[:SAMPLE]
    positions = np.sort(sampled_N).tolist()
    augmented_N = _augmented_cosines(shards, encoder, pretrain, real_NF, positions)
    facts = QualityFacts(
        **_distances(real_NF, made, real_NF[sampled_N], sample.features_NF),
        cosine_histogram={
            "candidate": _histogram(measured.scores["cosine"]),
            "augmentation": _histogram(augmented_N),
        },
        means=_means(measured.scores, augmented_N),
        suspicious=_suspicious(shards, measured, test),
    )

    # What only labels tell
    if real_features.labels_N is not None:
        of_labels = _label_facts(measured.scores, real_NF, real_features.labels_N)
        facts = facts.model_copy(update=of_labels)

    return Quality(measured.scores, facts)


def _real_features(
    shards: ShardSet, encoder: Encoder, real_NF: torch.Tensor, test: ImageSource | None
) -> _RealFeatures:
    test_MF = None
    if test is not None:
        images = (batch for _, batch in decoded(test, encoder.batch))
        test_MF = functional.normalize(image_features(encoder, images), dim=1).to(encoder.device)

    labels = class_numbers(shards)
    probe = None
    if labels is not None:
        probe = fit_probe(real_NF, labels)

    anchors_NF = functional.normalize(real_NF, dim=1).to(encoder.device)
    return _RealFeatures(anchors_NF, test_MF, labels, probe)


def fit_probe(real_NF: torch.Tensor, labels_N: torch.Tensor) -> Regression:
    """Fit the probe, which judges candidates, to the anchors that have labels."""
    known_N = labels_N != NO_CLASS
    return fit(real_NF[known_N], labels_N[known_N], int(labels_N.max()) + 1, PROBE_L2)


def _label_facts(
    scores: Mapping[str, np.ndarray], real_NF: torch.Tensor, labels_N: torch.Tensor
) -> dict[str, Any]:
    """Return the facts of a set that are found by labels: of the probe, and of how it judges the other measures."""
    known_N = labels_N != NO_CLASS
    areas = areas_under_roc(scores)
    errors = {name: found.error for name, found in areas.items() if found.error is not None}
    return {
        "labelled_anchors": int(known_N.sum()),
        "probe_top1": _probe_accuracy(real_NF[known_N], labels_N[known_N]),
        "auroc": {name: found.area for name, found in areas.items()},
        "auroc_error": errors,
    }


def _probe_accuracy(real_NF: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Return top-1 in percent of a probe on a tenth of the anchors that it did not see: the most agreement can reach.

    None where a class has a single anchor.
    """
    counts = np.bincount(labels.numpy())
    if counts[counts > 0].min() < 2:
        return None

    held_out = torch.from_numpy(hold_out(labels.numpy(), 0.1, "probe"))
    probe = fit(real_NF[~held_out], labels[~held_out], int(labels.max()) + 1, PROBE_L2)
    predicted = probe.logits(real_NF[held_out]).argmax(dim=1)
    return 100 * float((predicted == labels[held_out]).double().mean())


# The candidates, one by one


class _Sample:
    """Keeps the features of some of the candidates that come by.

    They are drawn apart from the anchors, and from all K: pairs, or every n-th candidate, would look nearer than the
    sets are.
    """

    def __init__(self, count: int, width: int):
        self._chosen = np.sort(permutation(count, "quality candidates")[:SAMPLE])
        self.features_NF = torch.empty(len(self._chosen), width)

    def add(self, features_BF: torch.Tensor, first: int) -> None:
        """Keep the drawn ones of a batch, whose first candidate is number `first` of the set."""
        low, high = np.searchsorted(self._chosen, (first, first + len(features_BF)))
        self.features_NF[low:high] = features_BF[self._chosen[low:high] - first]


def _measure_candidates(
    shards: ShardSet, encoder: Encoder, real_features: _RealFeatures, report: Report | None
) -> tuple[_Measured, Moments, _Sample]:
    """Measure all candidates in one pass over them, a few anchors at a time."""
    candidates = shards.candidates
    width = real_features.anchors_NF.shape[1]
    made = Moments(width)
    sample = _Sample(len(shards) * candidates, width)
    batches = []

    anchors = max(1, encoder.batch // candidates)
    for start, images in ahead(candidate_images(shards, anchors)):
        features_BF = encoder(images)
        made.add(features_BF)
        sample.add(features_BF, start * candidates)
        batches.append(
            _measure_batch(features_BF.view(-1, candidates, width), start, real_features)
        )

        if report:
            report(start + len(features_BF) // candidates, len(shards))

    return _joined(batches), made, sample


def _measure_batch(
    features_NKF: torch.Tensor, start: int, real_features: _RealFeatures
) -> _Measured:
    """Measure the candidates of the anchors from number `start` on."""
    # Their own anchor among all of them
    count, candidates, _ = features_NKF.shape
    shape = (count, candidates)
    unit_NKF = functional.normalize(features_NKF, dim=2)
    unit_BF = unit_NKF.flatten(0, 1)
    own_B = torch.arange(start, start + count).repeat_interleave(candidates)
    found = search_anchors(unit_BF, real_features.anchors_NF, own_B)

    scores = {
        "cosine": found.own_B.view(shape),
        "anchor_rank": found.rank_B.view(shape).float(),
        "margin": found.margin.view(shape),
    }

    # One beside the other
    if candidates > 1:
        scores["diversity"] = diversity(unit_NKF)

    # What a probe makes of them
    if real_features.probe is not None and real_features.labels_N is not None:
        chances_NKC = real_features.probe.logits(features_NKF).softmax(dim=2)
        scores |= _label_scores(chances_NKC, real_features.labels_N[start : start + count])

    # The nearest images that they were not made for
    scores["nearest_train"] = found.nearest.cosine_B.view(shape)
    nearest = {"nearest_train": found.nearest.place_B.view(shape)}
    if real_features.test_MF is not None:
        found_test = nearest_images(unit_BF, real_features.test_MF)
        scores["nearest_test"] = found_test.cosine_B.view(shape)
        nearest["nearest_test"] = found_test.place_B.view(shape)

    return _Measured(
        {name: values.numpy() for name, values in scores.items()},
        {name: places.numpy() for name, places in nearest.items()},
    )


def _joined(batches: Sequence[_Measured]) -> _Measured:
    """Put the batches' scores one below the other."""
    first = batches[0]
    scores = {}
    for name in first.scores:
        scores[name] = np.concatenate([batch.scores[name] for batch in batches])

    nearest = {}
    for name in first.nearest:
        nearest[name] = np.concatenate([batch.nearest[name] for batch in batches])

    return _Measured(scores, nearest)


def diversity(unit_NKF: torch.Tensor) -> torch.Tensor:
    """Return `(N, K)`: one less the mean cosine to the anchor's other candidates, K > 1."""
    others = unit_NKF.shape[1] - 1
    to_all_NK = torch.einsum("nkf,njf->nk", unit_NKF, unit_NKF)
    to_itself_NK = unit_NKF.square().sum(dim=2)
    return 1 - (to_all_NK - to_itself_NK) / others


def _label_scores(chances_NKC: torch.Tensor, labels_N: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the chance of each anchor's label at its candidates, and 1 where it is the likeliest; NaN without one."""
    # The class to look for, any where there is none
    known_N1 = (labels_N != NO_CLASS)[:, None]
    labels_NK = labels_N.clamp_min(0)[:, None].expand(chances_NKC.shape[:2])

    chance_NK = chances_NKC.gather(2, labels_NK[:, :, None])[:, :, 0]
    agreement_NK = (chances_NKC.argmax(dim=2) == labels_NK).float()
    return {
        "label_probability": chance_NK.where(known_N1, torch.nan),
        "agreement": agreement_NK.where(known_N1, torch.nan),
    }


# The set as a whole


def _distances(
    real_NF: torch.Tensor, made: Moments, some_real_NF: torch.Tensor, some_made_MF: torch.Tensor
) -> dict[str, Any]:
    """Return the measures of how far the candidates are from the anchors; those of pairs are of some of either."""
    # Of all images
    real = Moments(real_NF.shape[1])
    real.add(real_NF)
    frechet = frechet_distance(real, made)

    # Of pairs
    distance, deviation = kernel_distance(some_real_NF, some_made_MF)
    precision, recall = precision_recall(some_real_NF, some_made_MF)

    return {
        "frechet_distance": frechet,
        "kernel_distance": distance,
        "kernel_distance_std": deviation,
        "precision": precision,
        "recall": recall,
        "images": {
            "anchors": real.count,
            "candidates": made.count,
            "compared": min(len(some_real_NF), len(some_made_MF)),
        },
    }


def _means(scores: Mapping[str, np.ndarray], augmented_N: np.ndarray) -> dict[str, float]:
    """Return the mean of every measure where it is known, and of the cosines to ordinary views."""
    means = {name: float(np.nanmean(values)) for name, values in scores.items()}
    means["augmentation_cosine"] = float(augmented_N.mean())
    return means


def _augmented_cosines(
    shards: ShardSet,
    encoder: Encoder,
    pretrain: PretrainConfig,
    real_NF: torch.Tensor,
    positions: list[int],
) -> np.ndarray:
    """Return the cosine of each of these anchors to an ordinary augmented view of it."""
    # The views come without normalisation, for the encoder has its own
    unnormalised = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    plain = pretrain.model_copy(update=unnormalised)
    size = min(plain.view_size(shards.size), shards.size)
    views = Views(plain, size, torch.device("cpu"))
    cosines = []

    for number, start in enumerate(range(0, len(positions), encoder.batch)):
        chosen = positions[start : start + encoder.batch]
        images_BHWC = np.stack([shards.anchor(position) for position in chosen])
        images_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2)

        # A view of each, in uint8 like the candidates
        view_BCHW = views(images_BCHW, 1, number, 0).clamp(0, 1)
        view_BHWC = (view_BCHW * 255).round().to(torch.uint8).permute(0, 2, 3, 1)

        features_BF = encoder(view_BHWC)
        cosines.append(functional.cosine_similarity(features_BF, real_NF[chosen]))

    return torch.cat(cosines).numpy()


def _histogram(cosines: np.ndarray) -> list[float]:
    """Count cosines per bin from -1 to 1, as shares of all."""
    counts, _ = np.histogram(cosines.clip(-1, 1), BINS, (-1, 1))
    return (counts / cosines.size).round(6).tolist()


def _suspicious(
    shards: ShardSet, measured: _Measured, test: ImageSource | None
) -> dict[str, list[SuspiciousPair]]:
    """List the candidates nearest to another training image and to a test image, the nearest first."""
    # Where either measure finds the key of a nearest image
    keys: dict[str, Callable[[int], str]] = {"nearest_train": shards.key}
    if test is not None:
        keys["nearest_test"] = test.key

    lists = {}
    for measure, key_of in keys.items():
        # The candidates in the order of their cosines
        cosines_NK = measured.scores[measure]
        nearest_NK = measured.nearest[measure]
        order = np.argsort(-cosines_NK, axis=None, kind="stable")[:SHOWN]

        # What is known of each
        lists[measure] = []
        for flat in order:
            position, candidate = divmod(int(flat), cosines_NK.shape[1])
            nearest = int(nearest_NK[position, candidate])
            lists[measure].append(
                SuspiciousPair(
                    key=shards.key(position),
                    position=position,
                    candidate=candidate,
                    cosine=round(float(cosines_NK[position, candidate]), 6),
                    nearest=key_of(nearest),
                    nearest_position=nearest,
                )
            )

    return lists
