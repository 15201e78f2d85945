"""Quality of a shard set: measures of every candidate, and of the set as a whole, in the features of an encoder.

Shape legend: N anchors, K candidates per anchor, F features, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from ...core import InputError, permutation
from ...core.report import Report
from ...shards import ImageSource, ShardSet
from ...train import PretrainConfig, Views
from ..features.encoder import Encoder
from ..features.extract import ahead, decoded, hold_out
from ..features.shard_features import anchor_images, candidate_images, class_numbers, image_features
from ..probes.logistic import Regression, fit
from .distances import Moments, frechet_distance, kernel_distance, precision_recall

SAMPLE = 5000
"""Images of either kind for the kernel distance, precision and recall: all pairs of them are looked at."""
PROBE_L2 = 1.0
SHOWN = 24
BINS = 40
MEASURES = {
    "cosine": "to its anchor: low is a hard positive",
    "diversity": "1 - mean cosine to the anchor's other candidates",
    "label_probability": "that a probe trained on the real anchors gives to the anchor's label",
    "agreement": "1 where that probe's class is the anchor's label",
    "nearest_train": "cosine to the nearest anchor of the set other than its own: near 1 is a copy (memorisation)",
    "nearest_test": "cosine to the nearest test image: near 1 is a copy of it (leakage)",
}
"""The measures of a candidate, each a column of `scores/NAME.parquet`."""


@dataclass
class Quality:
    """Scores measure → `(N, K)` float32, and the facts of the set as a whole."""

    scores: dict[str, np.ndarray]
    facts: dict[str, Any]


@dataclass
class _Found:
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

    real_NF = image_features(encoder, anchor_images(shards, encoder.batch))
    test_MF = None
    if test is not None:
        images = (batch for _, batch in decoded(test, encoder.batch))
        test_MF = functional.normalize(image_features(encoder, images), dim=1).to(encoder.device)

    labels = class_numbers(shards)
    probe = None if labels is None else fit(real_NF, labels, int(labels.max()) + 1, PROBE_L2)
    found, made, sample_NF = _measure_candidates(
        shards, encoder, real_NF, test_MF, labels, probe, report
    )
    real = Moments(real_NF.shape[1])
    real.add(real_NF)
    sampled = permutation(len(real_NF), "quality anchors")[:SAMPLE]
    facts = _set_facts(real, made, real_NF[sampled], sample_NF)
    augmented = _augmented_cosines(shards, encoder, pretrain, real_NF, np.sort(sampled).tolist())
    facts["cosine_histogram"] = _histogram(
        {"candidate": found.scores["cosine"], "augmentation": augmented}
    )

    if labels is not None:
        facts["probe_top1"] = _probe_accuracy(real_NF, labels)

    facts["means"] = {name: float(values.mean()) for name, values in found.scores.items()}
    facts["means"]["augmentation_cosine"] = float(augmented.mean())
    facts["suspicious"] = _suspicious(shards, found, test)

    return Quality(found.scores, facts)


def _probe_accuracy(real_NF: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Top-1 in percent of a probe on a tenth of the anchors that it did not see: the most that agreement can reach.

    None where a class has a single anchor.
    """
    counts = np.bincount(labels.numpy())
    if counts[counts > 0].min() < 2:
        return None

    held_out = torch.from_numpy(hold_out(labels.numpy(), 0.1, "probe"))
    probe = fit(real_NF[~held_out], labels[~held_out], int(labels.max()) + 1, PROBE_L2)

    return 100 * float(
        (probe.logits(real_NF[held_out]).argmax(dim=1) == labels[held_out]).double().mean()
    )


def _measure_candidates(
    shards: ShardSet,
    encoder: Encoder,
    real_NF: torch.Tensor,
    test_MF: torch.Tensor | None,
    labels: torch.Tensor | None,
    probe: Regression | None,
    report: Report | None,
) -> tuple[_Found, Moments, torch.Tensor]:
    """One pass over the candidates, a few anchors at a time."""
    count = len(shards)
    candidates = shards.candidates
    unit_NF = functional.normalize(real_NF, dim=1)
    made = Moments(real_NF.shape[1])
    searched_NF = unit_NF.to(encoder.device)
    # Drawn apart from the anchors, and from all K: pairs, or every n-th candidate, would look nearer than the sets are.
    chosen = np.sort(permutation(count * candidates, "quality candidates")[:SAMPLE])
    sample_NF = torch.empty(len(chosen), real_NF.shape[1])
    absent = {"nearest_test"} if test_MF is None else set()
    absent |= {"label_probability", "agreement"} if probe is None else set()
    absent |= {"diversity"} if candidates < 2 else set()
    found = _Found(
        {
            name: np.empty((count, candidates), np.float32)
            for name in MEASURES
            if name not in absent
        },
        {
            name: np.empty((count, candidates), np.int64)
            for name in ("nearest_train", "nearest_test")
        },
    )
    anchors = max(1, encoder.batch // candidates)

    for start, images in ahead(candidate_images(shards, anchors)):
        features = encoder(images)
        made.add(features)
        first = start * candidates
        low, high = np.searchsorted(chosen, (first, first + len(features)))
        sample_NF[low:high] = features[chosen[low:high] - first]
        unit = functional.normalize(features, dim=1).view(-1, candidates, features.shape[1])
        rows = slice(start, start + len(unit))
        found.scores["cosine"][rows] = torch.einsum("nkf,nf->nk", unit, unit_NF[rows])

        if candidates > 1:
            found.scores["diversity"][rows] = diversity(unit)

        own = torch.arange(start, start + len(unit)).repeat_interleave(candidates)
        _nearest(found, "nearest_train", rows, unit, searched_NF, own)
        if test_MF is not None:
            _nearest(found, "nearest_test", rows, unit, test_MF, None)

        if probe is not None and labels is not None:
            _label_scores(found, rows, probe.logits(features).softmax(dim=1), labels[rows])

        if report:
            report(start + len(unit), count)

    return found, made, sample_NF


def _label_scores(
    found: _Found, rows: slice, chances_BC: torch.Tensor, labels_N: torch.Tensor
) -> None:
    wanted = labels_N.repeat_interleave(len(chances_BC) // len(labels_N))
    shape = (len(labels_N), -1)
    found.scores["label_probability"][rows] = chances_BC.gather(1, wanted[:, None]).reshape(shape)
    found.scores["agreement"][rows] = (chances_BC.argmax(dim=1) == wanted).float().reshape(shape)


def diversity(unit_NKF: torch.Tensor) -> torch.Tensor:
    """`(N, K)`: one less the mean cosine to the anchor's other candidates, K > 1."""
    others = unit_NKF.shape[1] - 1
    return (
        1
        - (torch.einsum("nkf,njf->nk", unit_NKF, unit_NKF) - unit_NKF.square().sum(dim=2)) / others
    )


def _nearest(
    found: _Found,
    name: str,
    rows: slice,
    unit_NKF: torch.Tensor,
    others_MF: torch.Tensor,
    own: torch.Tensor | None,
) -> None:
    cosines = unit_NKF.flatten(0, 1).to(others_MF.device) @ others_MF.T
    if own is not None:
        cosines[torch.arange(len(own)), own] = -torch.inf
    best = cosines.max(dim=1)
    found.scores[name][rows] = best.values.view(unit_NKF.shape[:2]).cpu()
    found.nearest[name][rows] = best.indices.view(unit_NKF.shape[:2]).cpu()


def _set_facts(
    real: Moments, made: Moments, real_NF: torch.Tensor, made_MF: torch.Tensor
) -> dict[str, Any]:
    distance, deviation = kernel_distance(real_NF, made_MF)
    precision, recall = precision_recall(real_NF, made_MF)

    return {
        "frechet_distance": frechet_distance(real, made),
        "kernel_distance": distance,
        "kernel_distance_std": deviation,
        "precision": precision,
        "recall": recall,
        "images": {
            "anchors": real.count,
            "candidates": made.count,
            "compared": min(len(real_NF), len(made_MF)),
        },
    }


def _augmented_cosines(
    shards: ShardSet,
    encoder: Encoder,
    pretrain: PretrainConfig,
    real_NF: torch.Tensor,
    positions: list[int],
) -> np.ndarray:
    """The cosine of each of these anchors to an ordinary augmented view of it."""
    plain = pretrain.model_copy(update={"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)})
    views = Views(plain, shards.size, torch.device("cpu"))
    cosines = []

    for number, start in enumerate(range(0, len(positions), encoder.batch)):
        chosen = positions[start : start + encoder.batch]
        images = torch.from_numpy(
            np.stack([shards.anchor(position) for position in chosen])
        ).permute(0, 3, 1, 2)
        view = (views(images, 1, number, 0).clamp(0, 1) * 255).round().to(torch.uint8)
        cosines.append(
            functional.cosine_similarity(encoder(view.permute(0, 2, 3, 1)), real_NF[chosen])
        )

    return torch.cat(cosines).numpy()


def _histogram(cosines: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Counts per bin from -1 to 1, as shares of all."""
    return {
        name: (np.histogram(values.clip(-1, 1), BINS, (-1, 1))[0] / values.size).round(6).tolist()
        for name, values in cosines.items()
    }


def _suspicious(
    shards: ShardSet, found: _Found, test: ImageSource | None
) -> dict[str, list[dict[str, Any]]]:
    """The candidates nearest to another training image and to a test image, the nearest first."""
    names: dict[str, Callable[[int], str]] = {"nearest_train": shards.key}
    if test is not None:
        names["nearest_test"] = test.key

    lists = {}
    for measure in names.keys() & found.scores.keys():
        order = np.argsort(-found.scores[measure], axis=None, kind="stable")[:SHOWN]
        lists[measure] = [
            {
                "key": shards.key(int(position)),
                "position": int(position),
                "candidate": int(candidate),
                "cosine": round(float(found.scores[measure][position, candidate]), 6),
                "nearest": names[measure](int(found.nearest[measure][position, candidate])),
                "nearest_position": int(found.nearest[measure][position, candidate]),
            }
            for position, candidate in zip(
                *np.unravel_index(order, found.scores[measure].shape), strict=True
            )
        ]

    return lists
