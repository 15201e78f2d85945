"""Define the recipe sections `[linear_eval]`, `[knn]` and `[transfer]`."""

from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ..core import Section

Precision = Annotated[
    Literal["no", "bf16"], BeforeValidator(lambda value: "no" if value == "auto" else value)
]
"""float32 (`no`) or bfloat16. Resolved recipes of older runs have `auto`, which chose by the machine: now float32."""


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, int | float) else value


def _whole_from_1_on(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"{value} labels per class; give a whole number, or a share below 1")
    return value


Amount = Annotated[float, Field(gt=0, allow_inf_nan=False), AfterValidator(_whole_from_1_on)]
"""A share of every class below 1, or a number of images per class."""


class LinearEvalConfig(Section):
    """Holds the settings of linear evaluation, and the labelled sets of all evaluations; the defaults are the paper's.

    >>> LinearEvalConfig(labels=0.1).labels
    (0.1,)
    """

    protocol: Literal["clsp", "sweep"] = "clsp"
    """`clsp`: the paper's, with the keys below. `sweep`: every pair of `sweep_lr` and `sweep_weight_decay` is a head of
    its own (momentum 0.9, cosine, standardised features); the best on a part of train is trained on all of it."""
    test_path: str = ""
    """Source of the test images; empty: the anchors' own path. Training images come from the anchors' path."""
    train_split: str = ""
    """Split of the training images; empty: the anchors', which have to be labelled then."""
    test_split: str = "test"
    train_limit: int = Field(default=0, ge=0)
    """Use the first images only; 0 uses all."""
    test_limit: int = Field(default=0, ge=0)
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=1.0, gt=0)
    milestones: tuple[int, ...] = (60, 80)
    """Epochs after which the learning rate falls to a tenth."""
    flip: bool = True
    """Train on horizontal flips, half of the time."""
    labels: Annotated[tuple[Amount, ...], BeforeValidator(_one_or_several)] = ()
    """Evaluate also with so few labels, by logistic regression on the frozen features, in either protocol: a share of
    every class below 1 (0.01; at least one image), or a number of images per class (1 and 1.0 alike are one). Empty:
    with all labels only, with which every run is evaluated anyway."""
    label_draws: int = Field(default=5, ge=1)
    """How often few labels are drawn, each time anew; the mean counts."""
    sweep_lr: tuple[PositiveFloat, ...] = Field(
        default=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), min_length=1
    )
    sweep_weight_decay: tuple[NonNegativeFloat, ...] = Field(
        default=(0.0, 1e-6, 1e-5, 1e-4, 1e-3), min_length=1
    )
    precision: Precision = "no"
    """Of feature extraction in kNN, linear evaluation and scores: float32, or bf16 where it is asked for."""


class KnnConfig(Section):
    """Holds the settings of the weighted k-nearest-neighbour vote in cosine similarity (Wu et al. 2018).

    >>> KnnConfig().k
    (20, 200)
    """

    k: tuple[PositiveInt, ...] = Field(default=(20, 200), min_length=1)
    temperature: float = Field(default=0.07, gt=0)
    replica_k: tuple[PositiveInt, ...] = Field(default=(5, 10, 20, 50, 100, 200), min_length=1)
    """Of which `--replica` reports the best one on the test images, as the paper's authors did."""


class TransferSet(Section):
    """Holds a labelled data set to transfer to.

    >>> TransferSet(path="tanganke/dtd").metric
    'top1'
    """

    path: str = Field(min_length=1)
    """A hub id, or a local folder or parquet file."""
    label: str = ""
    """The column of the class numbers; empty finds it."""
    train: str = "train"
    validation: str = ""
    """Empty: a fifth of train, the same one always, is held out to choose l2."""
    test: str = "test"
    """Empty: `per_class` images of every class of train are drawn to train with, the others are the test."""
    per_class: int = Field(default=0, ge=0)
    metric: Literal["top1", "mean_per_class"] = "top1"

    @model_validator(mode="after")
    def _has_a_test(self) -> "TransferSet":
        if bool(self.test) == bool(self.per_class) or (self.validation and not self.test):
            raise ValueError(
                "a set needs either a test split or per_class > 0 (and then no validation split)"
            )
        splits = [split for split in (self.train, self.validation, self.test) if split]
        if len(set(splits)) < len(splits):
            raise ValueError(f"the splits {', '.join(splits)} must be different ones")
        return self


KNOWN_SETS: dict[str, dict[str, Any]] = {
    "food101": {"path": "ethz/food101", "test": "validation"},
    "cifar10": {"path": "uoft-cs/cifar10"},
    "cifar100": {"path": "uoft-cs/cifar100", "label": "fine_label"},
    "sun397": {"path": "tanganke/sun397"},
    "cars": {"path": "tanganke/stanford_cars"},
    "aircraft": {
        "path": "HuggingFaceM4/FGVC-Aircraft",
        "label": "variant",
        "validation": "validation",
        "metric": "mean_per_class",
    },
    "dtd": {"path": "tanganke/dtd"},
    "pets": {"path": "timm/oxford-iiit-pet", "metric": "mean_per_class"},
    "caltech101": {
        "path": "flwrlabs/caltech101",
        "test": "",
        "per_class": 30,
        "metric": "mean_per_class",
    },
    "flowers102": {
        "path": "dpdl-benchmark/oxford_flowers102",
        "validation": "validation",
        "metric": "mean_per_class",
    },
}
"""The sets that the field compares on: where they lie on the hub, their splits and their metrics."""


class TransferConfig(Section):
    """Holds the settings of transfer: frozen features, L-BFGS logistic regression, l2 chosen on validation.

    >>> config = TransferConfig(only=("dtd", "pets"), l2=(0.01, 100, 5))
    >>> config.chosen["pets"].metric
    'mean_per_class'
    >>> config.strengths
    [0.01, 0.1, 1.0, 10.0, 100.0]
    """

    only: tuple[str, ...] = ()
    """Names of the sets to evaluate; empty: the ten known ones and every further one in `sets`."""
    sets: dict[str, dict[str, Any]] = Field(default={})
    """By name: other keys for a known set (mostly its `path`), or a further set."""
    l2: tuple[PositiveFloat, PositiveFloat, PositiveInt] = (1e-6, 1e5, 45)
    """Smallest, largest and number of the values tried, evenly spaced in the logarithm."""
    iterations: int = Field(default=1000, ge=1)
    """The most L-BFGS iterations of one fit."""
    limit: int = Field(default=0, ge=0)
    """Use the first images of every split only; 0 uses all."""
    precision: Precision = "no"
    """Of feature extraction."""

    @model_validator(mode="after")
    def _known(self) -> "TransferConfig":
        for name in self.sets:
            try:
                self._set(name)
            except ValidationError as error:
                fault = error.errors()[0]
                key = ".".join(["sets", name, *map(str, fault["loc"])])
                message = f"{key}: {fault['msg']}"
                if fault["type"] == "extra_forbidden":
                    message += f", known keys are {', '.join(TransferSet.model_fields)}"
                raise ValueError(message) from error

        for name in self.only:
            if name not in self.chosen:
                raise ValueError(f"only names {name!r}, known are {', '.join(self.chosen)}")

        return self

    def _set(self, name: str) -> TransferSet:
        known = KNOWN_SETS.get(name, {})
        return TransferSet(**{**known, **self.sets.get(name, {})})

    @cached_property
    def chosen(self) -> dict[str, TransferSet]:
        """Return every known and further set with its keys."""
        names = list(dict.fromkeys([*KNOWN_SETS, *self.sets]))
        return {name: self._set(name) for name in names}

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the sets to evaluate."""
        return self.only or tuple(self.chosen)

    @property
    def strengths(self) -> list[float]:
        """Return the values of l2 to try."""
        low, high, count = self.l2
        return np.logspace(np.log10(low), np.log10(high), count).tolist()

    @property
    def protocol(self) -> tuple[Any, ...]:
        """Return the settings that change a figure, other than the sets."""
        return self.l2, self.iterations, self.limit
