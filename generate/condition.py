"""Say what the class embedding of a diffusion model means, and which class an anchor has in it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from ..core import InputError, canonical_json, first_fault, write_file
from ..shards import Anchor, ConditionPlan, ImageSource
from .clusters import (
    FILE,
    ClusterEncoder,
    Clusters,
    make_clusters,
    own_classes,
    read_clusters,
    unit_features,
    write_clusters,
)
from .config import DiffusionConfig, SamplerConfig
from .pretrained import model_file
from .training_folder import CHECKPOINT

RECORD = "condition.json"


class ConditionRecord(BaseModel):
    """Says in a model's folder what the classes of its U-Net are.

    >>> ConditionRecord(kind="clusters", classes=10).null
    10
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    kind: Literal["clusters", "features", "labels"]
    classes: int
    """The number of them; the class embedding has one row more, for «no class»."""
    digest: str | None = None
    """The SHA-256 of the anchors' pseudo-classes."""

    @property
    def null(self) -> int:
        """Return the row of the class embedding that stands for «no class»."""
        return self.classes


@dataclass(frozen=True)
class Condition:
    """Holds the classes of a conditional diffusion model: pseudo-classes of its anchors, or their labels.

    >>> condition = Condition("labels", embeddings=11, null=10)
    >>> anchor = Anchor(index=0, key="train_00000000", image=np.zeros((8, 8, 3), np.uint8), label=3, digest="aa")
    >>> condition.classes_of([anchor])
    [3]
    """

    kind: Literal["clusters", "features", "labels", "unknown"]
    """`features`: every anchor has a class of its own, whose embedding is its features. `labels` is the paper's upper
    bound: what comes of it is not self-supervised. `unknown`: nobody said so far."""
    embeddings: int
    """Rows of the U-Net's class embedding."""
    null: int | None = None
    """The row that stands for «no class», which guidance needs; None without one."""
    clusters: Clusters | None = None

    @property
    def classes(self) -> int:
        """Return the number of classes, without «no class»."""
        return self.embeddings if self.null is None else self.embeddings - 1

    @property
    def plan(self) -> ConditionPlan:
        """Return what a plan records of it."""
        assert self.kind != "unknown"
        record = ConditionPlan(kind=self.kind, embeddings=self.embeddings, null=self.null)
        if self.clusters is None:
            return record

        facts = self.clusters.facts
        return record.model_copy(
            update={
                "digest": self.clusters.digest,
                "encoder": facts.encoder,
                "encoder_digest": facts.encoder_digest,
            }
        )

    def classes_of(self, anchors: Sequence[Anchor]) -> list[int]:
        """Return the class of each anchor in the U-Net.

        Raises:
            InputError: one has none.
        """
        if self.clusters is not None:
            return self.clusters.of(anchors)

        found = []
        for anchor in anchors:
            label = -1 if anchor.label is None else anchor.label
            if not 0 <= label < self.embeddings or label == self.null:
                raise self._no_class(anchor.key, anchor.label)
            found.append(label)

        return found

    def check_anchors(self, anchors: ImageSource) -> None:
        """Refuse anchors of which any has no class: all labels and keys are looked at, and the bytes of a few images.

        Raises:
            InputError: one has none, or was another image when it was clustered.
        """
        if self.clusters is not None:
            keys = [anchors.key(place) for place in range(len(anchors))]
            self.clusters.places_of(keys)
        else:
            self._check_labels(anchors)

        self.classes_of([anchors[place] for place in anchors.spread(16)])

    def _check_labels(self, anchors: ImageSource) -> None:
        labels_N = anchors.labels()
        is_class_N = (labels_N >= 0) & (labels_N < self.embeddings)
        if self.null is not None:
            is_class_N &= labels_N != self.null

        outside = np.flatnonzero(~is_class_N)
        if len(outside):
            raise self._no_class(anchors.key(int(outside[0])), int(labels_N[outside[0]]))

    def _no_class(self, key: str, label: int | None) -> InputError:
        none = "" if self.null is None else f", of which {self.null} stands for «no class»"
        return InputError(
            f"anchor {key} has the label {label}, and the diffusion model knows the classes 0 … "
            f"{self.embeddings - 1}{none}; give anchors with such labels, or a model without classes"
        )

    def as_recorded(self, plan: ConditionPlan | None) -> "Condition":
        """Return the condition as the plan of a set that exists has it, which says what the classes are."""
        if plan is None or self.kind != "unknown":
            return self
        return replace(self, kind=plan.kind, null=plan.null)


def read_condition(path: str, embeddings: int) -> Condition:
    """Return the condition of the U-Net in a folder or on the hub, whose class embedding has so many rows.

    Raises:
        InputError: what lies beside the U-Net about its classes does not fit it.
    """
    record_file = model_file(path, RECORD)
    if record_file is None:
        return Condition("unknown", embeddings)

    # A model of clsp diffusion train
    try:
        content = record_file.read_text(encoding="utf-8")
        record = ConditionRecord.model_validate_json(content)
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else error
        raise InputError(
            f"{path}/{RECORD} does not say what the model's classes are ({reason}); fetch the folder again"
        ) from error

    if record.classes + 1 != embeddings:
        raise InputError(
            f"{path}/{RECORD} names {record.classes} classes, the U-Net has {embeddings} embeddings, expected one more "
            "than classes; fetch the folder again"
        )
    if record.kind == "labels":
        return Condition("labels", embeddings, record.null)

    # Its pseudo-classes
    clusters_file = model_file(path, FILE)
    if clusters_file is None:
        raise InputError(
            f"diffusion model {path} has no {FILE}, its anchors' pseudo-classes; fetch the folder again"
        )

    clusters = read_clusters(clusters_file)
    if clusters.facts.clusters != record.classes:
        raise InputError(
            f"{path}: {FILE} has {clusters.facts.clusters} clusters, {RECORD} {record.classes}; "
            "fetch the folder again"
        )
    if record.digest not in (None, clusters.digest):
        raise InputError(
            f"{path}: {FILE} has the digest {clusters.digest}, {RECORD} names {record.digest}; fetch the folder again"
        )
    return Condition(record.kind, embeddings, record.null, clusters)


@dataclass(frozen=True)
class TrainClasses:
    """Holds the classes that a model is trained with: what they are, how many, and that of every anchor.

    >>> from clsp.shards import AnchorsConfig
    >>> digits = ImageSource(AnchorsConfig(limit=40))
    >>> classes = label_classes(digits)
    >>> classes.record.classes, classes.classes_N[:3]
    (10, array([0, 1, 2]))
    """

    record: ConditionRecord
    classes_N: np.ndarray
    """`(N,)` int64, in the order of the anchors."""
    clusters: Clusters | None = None
    unit_NF: np.ndarray | None = None
    """The anchors' features of length 1, for a U-Net that is told them and has not been yet."""

    def save(self, folder: Path) -> None:
        """Write down in a model's folder what the classes of its U-Net are; the record, for which others wait, last."""
        if self.clusters is not None and not (folder / FILE).exists():
            write_clusters(folder, self.clusters)
        write_file(folder / RECORD, canonical_json(self.record.model_dump(exclude_none=True)))


def label_classes(anchors: ImageSource) -> TrainClasses:
    """Return the anchors' labels as the classes of a model.

    Raises:
        InputError: the anchors have no labels.
    """
    labels_N = anchors.labels()
    if labels_N.min() < 0:
        raise InputError(
            "diffusion.condition is labels, and some anchors have none; expected a label each"
        )

    count = len(anchors.class_names or ()) or int(labels_N.max()) + 1
    return TrainClasses(ConditionRecord(kind="labels", classes=count), labels_N)


def cluster_classes(
    anchors: ImageSource, config: DiffusionConfig, encoder: ClusterEncoder, out: Path
) -> TrainClasses:
    """Return the anchors' pseudo-classes as a model's classes: those in its folder, or new ones.

    Raises:
        InputError: they cannot be made, or those in the folder are of other anchors.
    """
    file = out / FILE
    is_begun = file.exists()
    clusters = (
        read_clusters(file)
        if is_begun
        else make_clusters(anchors, encoder, config.clusters, config.seed)
    )

    record = ConditionRecord(kind="clusters", classes=config.clusters, digest=clusters.digest)
    return TrainClasses(record, clusters.of_source(anchors), clusters)


def feature_classes(
    anchors: ImageSource,
    config: DiffusionConfig,
    encoder: ClusterEncoder,
    out: Path,
    is_main_process: bool = True,
) -> TrainClasses:
    """Return a class for every anchor, whose embedding is to be its features.

    A training that has a checkpoint finds them in its weights, and the encoder has nothing to do. Nor has it in other
    processes than the first, whose weights they begin with.

    Raises:
        InputError: those in the folder are of other anchors.
    """
    file = out / FILE
    own = read_clusters(file) if file.exists() else own_classes(anchors, encoder, config.seed)
    record = ConditionRecord(kind="features", classes=len(anchors), digest=own.digest)

    unit_NF = None
    if is_main_process and not (out / CHECKPOINT).exists():
        unit_NF = unit_features(encoder.extract(anchors))
    return TrainClasses(record, own.of_source(anchors), own, unit_NF)


def settled_condition(
    found: Condition | None, config: DiffusionConfig, name: str
) -> Condition | None:
    """Return the condition of a model as the recipe wants it.

    Labels are never used without a word: the recipe has to say `diffusion.condition = "labels"`.

    Raises:
        InputError: the model has other classes than the recipe says.
    """
    wanted = config.condition
    if found is None:
        if wanted != "none":
            raise InputError(
                f"diffusion.condition is {wanted}, and the diffusion model {name} has no classes; "
                "set it to none, or train a model with classes"
            )
        return None

    # Labels, only if they are asked for
    if found.kind in ("labels", "unknown") and wanted != "labels":
        raise InputError(
            f"diffusion model {name} has {found.embeddings} classes, expected one without; to make positives by the "
            "anchors' labels (the paper's upper bound, not self-supervised) set diffusion.condition=labels"
        )
    if found.kind in ("clusters", "features") and wanted == "labels":
        what = "pseudo-classes" if found.kind == "clusters" else "features of its anchors"
        raise InputError(
            f"diffusion.condition is labels, and the diffusion model {name} has {what}; "
            f"set diffusion.condition={found.kind}"
        )
    if found.kind != "unknown":
        return found

    # Only the recipe knows which of its classes is none
    null = config.null_class
    if null is not None and null >= found.embeddings:
        raise InputError(
            f"diffusion.null_class is {null}, and the diffusion model {name} has the classes 0 … "
            f"{found.embeddings - 1}; set it to the one that stands for «no class», or leave it out"
        )
    return replace(found, kind="labels", null=null)


def check_guidance(condition: Condition | None, guidance: float, name: str) -> None:
    """Refuse guidance by a model that cannot be guided.

    Args:
        guidance: `sampler.guidance`; 1 is none.
        name: of the model.

    Raises:
        InputError: the model has no classes, or none is known to stand for «no class».
    """
    if guidance == 1:
        return

    found = f"sampler.guidance is {guidance:g}, and {name}"
    if condition is None:
        raise InputError(
            f"{found} has no classes; set it to 1, or use a model with diffusion.condition"
        )
    if condition.null is None:
        raise InputError(
            f"{found} has nothing known for «no class»; set it to 1, or name that class in diffusion.null_class"
        )


def check_told_features(condition: Condition | None, config: SamplerConfig, name: str) -> None:
    """Refuse `told_directions` and `told_neighbours` where the model cannot follow them.

    Args:
        config: of the sampler.
        name: of the model.

    Raises:
        InputError: the model is not told features, or there are fewer other anchors than `sampler.told_neighbours`.
    """
    told = {"told_directions": config.told_directions, "told_neighbours": config.told_neighbours}
    for key, value in told.items():
        if value and (condition is None or condition.kind != "features"):
            raise InputError(
                f"sampler.{key} is {value}, and {name} is not told features; "
                "set it to 0, or use a model with diffusion.condition=features"
            )

    others = condition.classes - 1 if condition else 0
    if config.told_neighbours > others:
        raise InputError(
            f"sampler.told_neighbours is {config.told_neighbours}, and {name} knows the features of {others} other "
            "anchors; set it to that or less"
        )
