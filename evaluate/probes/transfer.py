"""Evaluate transfer: frozen features of a pretrained backbone, a logistic regression on each of many data sets.

The field's protocol (Kornblith et al. 2019, Grill et al. 2020): no augmentation, l2 chosen on validation among 45
values, refit on train and validation together, each set's own metric on test.

Shape legend: N images of train and validation.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ...core import InputError
from ...shards import AnchorsConfig, ImageSource
from ..config import TransferConfig, TransferSet
from ..features.encoder import Encoder
from ..features.extract import (
    Features,
    called,
    check_labels,
    draw_per_class,
    extract,
    hold_out,
    number_alike,
    open_with_keys,
)
from .logistic import fit, fit_path
from .metrics import accuracies
from .registry import Figures

VALIDATION = 0.2


@dataclass(frozen=True)
class Splits:
    """Holds a data set's images; validation is None where a part of train is held out for it."""

    train: ImageSource
    validation: ImageSource | None
    test: ImageSource | None


def open_splits(name: str, config: TransferSet, size: int, limit: int = 0) -> Splits:
    """Open the splits of a data set at `size` pixels: the shorter side is scaled to it and the centre cut out.

    Raises:
        InputError: the set or one of its splits cannot be read.
    """

    def split(key: Literal["train", "validation", "test"]) -> ImageSource | None:
        which = getattr(config, key)
        if not which:
            return None

        anchors = AnchorsConfig(
            path=config.path, split=which, label=config.label, limit=limit, size=size
        )
        keys = {
            "path": f"transfer.sets.{name}.path",
            "split": f"transfer.sets.{name}.{key}",
            "label": f"transfer.sets.{name}.label",
        }
        try:
            return open_with_keys(anchors, keys)
        except InputError as error:
            raise InputError(
                f"{error} (transfer set {name}, split {which!r} as its recipe says)"
            ) from error

    train = split("train")
    assert train is not None
    validation = split("validation")
    test = split("test")
    try:
        for other in (validation, test):
            if other:
                number_alike(train, other)
    except InputError as error:
        raise InputError(f"transfer set {name}: {error}") from error

    return Splits(train, validation, test)


def transfer_features(
    encoder: Encoder, name: str, splits: Splits, per_class: int = 0, complete: bool = True
) -> tuple[Features, np.ndarray, Features]:
    """Extract features of train and validation together, a mask of those that validate, and features of test.

    Args:
        per_class: images of a class that are drawn to train with, where there is no test split.
        complete: False lets the test split lack classes.

    Raises:
        InputError: labels that are not 0 … n-1, a class that a split lacks, or too few images of a class.
    """
    try:
        if splits.test is None:
            return _features_without_test(encoder, splits.train, per_class)
        return _features(encoder, splits, splits.test, complete)
    except InputError as error:
        raise InputError(f"transfer set {name}: {error}") from error


def _features_without_test(
    encoder: Encoder, images: ImageSource, per_class: int
) -> tuple[Features, np.ndarray, Features]:
    """Draw the training images of a set that has one split; the recipe allows it no validation split then."""
    train, test = _drawn(extract(encoder, images), per_class)
    return train, _held_out(train), test


def _features(
    encoder: Encoder, splits: Splits, test_images: ImageSource, complete: bool
) -> tuple[Features, np.ndarray, Features]:
    names = splits.train.class_names
    check_labels(_labels(splits), test_images.labels(), complete, names)
    train = extract(encoder, splits.train)
    test = extract(encoder, test_images)
    if splits.validation is None:
        return train, _held_out(train), test

    validation = extract(encoder, splits.validation)
    plain_NF = torch.cat([train.plain_NF, validation.plain_NF])
    labels_N = torch.cat([train.labels_N, validation.labels_N])
    validates_N = np.arange(len(labels_N)) >= len(train.labels_N)

    return Features(plain_NF, None, labels_N), validates_N, test


def _held_out(train: Features) -> np.ndarray:
    """Choose a fifth of train for validation, the same one always."""
    return hold_out(train.labels_N.numpy(), VALIDATION, "transfer validation")


def _labels(splits: Splits) -> np.ndarray:
    """Return the labels of train and validation, which must have the same classes."""
    train = splits.train.labels()
    if splits.validation is None:
        return train

    validation = splits.validation.labels()
    different = np.setxor1d(validation, train)
    if len(different):
        classes = called(different, splits.train.class_names)
        raise InputError(
            f"the classes {classes} are in one of the splits train and validation only"
        )

    return np.concatenate([train, validation])


def _drawn(images: Features, per_class: int) -> tuple[Features, Features]:
    """Return `per_class` images of every class, always the same ones, and all others."""
    labels = images.labels_N.numpy()
    check_labels(labels, labels)
    counts = np.bincount(labels)
    fewest = int(counts.argmin())
    count = int(counts[fewest])

    if count <= per_class:
        raise InputError(
            f"class {fewest} has {count} images, drawing {per_class} to train leaves no test"
        )

    chosen = torch.from_numpy(draw_per_class(labels, lambda _: per_class, "transfer split"))
    return images.at(chosen), images.at(~chosen)


def evaluate_transfer(
    train: Features, validates_N: np.ndarray, test: Features, config: TransferConfig, metric: str
) -> Figures:
    """Return the set's metric on test with its interval in percent, and the l2 chosen on validation alone.

    Of equally good values the strongest l2 wins.
    """
    classes = int(train.labels_N.max()) + 1
    validates = torch.from_numpy(validates_N)
    validation = train.at(validates)
    part = train.at(~validates)

    # Choose l2, from the strongest on
    best = -1.0
    best_l2 = 0.0
    for fitted in fit_path(
        part.plain_NF, part.labels_N, classes, config.strengths, config.iterations
    ):
        reached = accuracies(fitted.logits(validation.plain_NF), validation.labels_N)[metric]
        if reached > best:
            best = reached
            best_l2 = fitted.l2

    # Fit to train and validation together, and test
    refitted = fit(train.plain_NF, train.labels_N, classes, best_l2, config.iterations)
    result = accuracies(refitted.logits(test.plain_NF), test.labels_N)

    return {
        "metric": metric,
        metric: result[metric],
        f"{metric}_interval": result[f"{metric}_interval"],
        "chosen": {
            "l2": best_l2,
            f"validation_{metric}": best,
            "converged": refitted.converged,
        },
        "images": {
            "train": int((~validates).sum()),
            "validation": int(validates.sum()),
            "test": len(test.labels_N),
        },
    }


def run_transfer(
    encoder: Encoder,
    config: TransferConfig,
    found: Mapping[str, Figures],
    save: Callable[[dict[str, Figures]], None],
) -> dict[str, Figures]:
    """Evaluate on every set of the recipe that `found` does not hold yet; `save` is called after each.

    Returns:
        set name → what `evaluate_transfer` says.

    Raises:
        InputError: the first set that cannot be read, before any is evaluated.
    """
    opened = {}
    for name in config.names:
        if name not in found:
            opened[name] = open_splits(name, config.chosen[name], encoder.size, config.limit)

    sets = dict(found)
    for name, splits in opened.items():
        chosen = config.chosen[name]
        train, validates, test = transfer_features(
            encoder, name, splits, chosen.per_class, not config.limit
        )
        result = evaluate_transfer(train, validates, test, config, chosen.metric)
        sets[name] = {**result, "set": _declared(config, name)}
        save(sets)

    return sets


def finished_sets(path: Path, config: TransferConfig, checkpoint: str) -> dict[str, Figures]:
    """Read the sets in a result file that were evaluated with this checkpoint and these settings, also those not asked
    for now; none, if the file is another version's or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if content.get("checkpoint") != checkpoint or content.get("precision") != config.precision:
            return {}

        earlier = TransferConfig.model_validate(content["recipe"]["transfer"])
        if earlier.protocol != config.protocol:
            return {}

        finished = {}
        for name, value in content["sets"].items():
            if value["set"] == _declared(config, name):
                finished[name] = value
        return finished
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _declared(config: TransferConfig, name: str) -> dict[str, Any] | None:
    """Return the keys of a set as result files record them, None for one that the recipe does not know."""
    if name not in config.chosen:
        return None
    return config.chosen[name].model_dump(mode="json")


def summary(sets: Mapping[str, Figures]) -> dict[str, float]:
    """Return set name → its metric in percent."""
    return {name: value[value["metric"]] for name, value in sets.items()}
