"""Define the plan of a layer: everything that determines its content, and nothing else."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    Field,
    JsonValue,
    ValidationError,
    field_serializer,
    model_validator,
)

from ...core import InputError, canonical_json, differences, owner_of, write_file
from ...core.json import first_fault
from ..sources.images import ImageSource
from .codec import CODECS, Codec, find_codec
from .config import ShardsConfig
from .layout import MAX_SHARDS, PLAN, image_fields, plan_path
from .metadata import FORMAT, SCHEMA_VERSION, Frozen, Sparse, parse_metadata, read_json

MAX_CANDIDATES = 1000
MAX_RECORDS = 1 << 20
MAX_SIZE = 1 << 14
NAMED_CLASSES = 10
"""Classes that a text names."""


class SourcePlan(Sparse):
    """Names the anchors: the name and split of the source, the geometry, and the digest of what it held.

    `background`, `bits` and `range` say how images that are not plain 8-bit RGB became so; they are left out for
    sources that have none, as in plans of earlier versions, which took the hidden colour and the upper 8 of 16 bits.

    >>> from clsp.shards import AnchorsConfig
    >>> source = source_plan(ImageSource(AnchorsConfig(path="digits", limit=10)))
    >>> source.count, source.size, source.licence
    (10, 8, 'cc-by-4.0')
    """

    name: str
    split: str
    licence: str
    count: int = Field(ge=1)
    size: int = Field(ge=1, le=MAX_SIZE)
    resize: str
    digest: str
    background: str | None = None
    bits: int | None = Field(default=None, ge=8, le=16)
    range: tuple[float, float] | None = None
    classes: list[str] | None = None
    """The names of the classes by their numbers, where they have names."""
    label_rule: str | None = None
    """How the labels were read, where versions before would have read others or none."""

    @property
    def facts(self) -> dict[str, str]:
        """Return what is recorded about classes and pixels as texts for people, by their titles.

        >>> plan = SourcePlan(
        ...     name="x", split="train", licence="", count=2, size=8, resize="crop", digest="0", classes=["a", "b"]
        ... )
        >>> plan.facts
        {'classes': '2: a, b'}
        """
        found = {}
        if self.classes is not None:
            rest = len(self.classes) - NAMED_CLASSES
            more = f" and {rest} more" if rest > 0 else ""
            names = ", ".join(self.classes[:NAMED_CLASSES])
            found["classes"] = f"{len(self.classes)}: {names}{more}"
        if self.label_rule:
            found["labels"] = f"by {self.label_rule}"

        pixels = []
        if self.background:
            pixels.append(f"background {self.background}")
        if self.bits:
            pixels.append(f"{self.bits} of 16 bits in use")
        if self.range:
            pixels.append(f"range {self.range[0]:g} to {self.range[1]:g}")
        if pixels:
            found["pixels"] = ", ".join(pixels)

        return found


class ConditionPlan(Sparse):
    """Says what a conditional diffusion model was given: pseudo-classes, the anchors' features, or their labels.

    >>> ConditionPlan(kind="labels", embeddings=11, null=10).text
    "the anchors' labels: an upper bound, not self-supervised"
    """

    kind: Literal["clusters", "features", "labels"]
    embeddings: int = Field(ge=1)
    """Rows of the U-Net's class embedding."""
    null: int | None = Field(default=None, ge=0)
    """The row that stands for «no class», where there is one."""
    digest: str | None = None
    """The SHA-256 of the anchors' pseudo-classes."""
    encoder: str | None = None
    """Whose features were clustered, or given."""
    encoder_digest: str | None = None

    @property
    def text(self) -> str:
        """Return the condition as a text for people."""
        if self.kind == "labels":
            return "the anchors' labels: an upper bound, not self-supervised"
        if self.kind == "features":
            return f"the anchors' features of {self.encoder}"
        return f"{self.embeddings - 1} clusters of the features of {self.encoder}"


class LatentPlan(Sparse):
    """Names the autoencoder of a latent diffusion model, and says how its latents were scaled and clipped.

    >>> LatentPlan(origin="stabilityai/sd-vae-ft-mse", digest="01", scaling=0.18215).text
    'latents of stabilityai/sd-vae-ft-mse'
    """

    origin: str
    digest: str
    """The SHA-256 of its configuration and weights."""
    scaling: float
    shift: float | None = None
    """Taken from a latent before it is scaled; left out where it is 0."""
    ranges: list[tuple[float, float]] | None = None
    """The lowest and the highest value of every channel, to which x0 was clipped; left out where nobody knows them."""

    @property
    def text(self) -> str:
        """Return the space as a text for people."""
        return f"latents of {self.origin}"


class DiffusionPlan(Sparse):
    """Names the diffusion model: where it came from and the digest of its configuration and weights.

    >>> DiffusionPlan(origin="google/ddpm-cifar10-32", digest="0123456789abcdef").origin
    'google/ddpm-cifar10-32'
    """

    origin: str
    digest: str
    condition: ConditionPlan | None = None
    """The classes that it was given; left out for a model without any."""
    latent: LatentPlan | None = None
    """The space that it works in; left out for a model of pixels."""

    @property
    def text(self) -> str:
        """Return what the model works in and was given, as a text for people; empty for a plain one.

        >>> DiffusionPlan(origin="x", digest="01", condition=ConditionPlan(kind="labels", embeddings=11)).text
        ", given the anchors' labels: an upper bound, not self-supervised"
        """
        space = f", in {self.latent.text}" if self.latent else ""
        given = f", given {self.condition.text}" if self.condition else ""
        return space + given


class Selection(Frozen):
    """Names a part of the source's anchors by their number and the digest of their indices."""

    count: int = Field(ge=1)
    digest: str


class Derived(Frozen):
    """Says how a layer was made from other sets: the command, its settings, and the provenance of every parent."""

    operation: str
    settings: dict[str, JsonValue]
    parents: list[dict[str, JsonValue]]


class Plan(Frozen):
    """Holds the content of `plan.json` for layer 0, of `layer-001.json` … for added ones: no time, no host.

    Its digest (SHA-256 of the file) names the plan. `first` is the layer's first candidate.

    >>> from clsp.shards import AnchorsConfig
    >>> plan = Plan(
    ...     source=source_plan(ImageSource(AnchorsConfig(path="digits", limit=10))),
    ...     diffusion=DiffusionPlan(origin="none", digest=""),
    ...     sampler={},
    ...     shards=ShardsConfig(candidates=2, records=4),
    ... )
    >>> plan.shard_count, plan.shard_range(2)
    (3, range(8, 10))
    """

    format: Literal["clsp-shard-set"] = FORMAT
    schema_version: str = SCHEMA_VERSION
    source: SourcePlan
    diffusion: DiffusionPlan
    sampler: dict[str, JsonValue]
    shards: ShardsConfig
    first: int | None = Field(default=None, ge=1)
    selection: Selection | None = None
    derived: Derived | None = None

    @field_serializer("shards")
    def _shards_as_recorded(self, shards: ShardsConfig) -> dict[str, Any]:
        """Leave out keys that joined later and say nothing."""
        return shards.recorded()

    @model_validator(mode="before")
    @classmethod
    def _codec_is_known(cls, content: Any) -> Any:
        """Raise InputError, which pydantic lets through, for a codec of later versions or one that is not installed."""
        shards = content.get("shards") if isinstance(content, dict) else None
        codec = shards.get("codec") if isinstance(shards, dict) else getattr(shards, "codec", None)
        if isinstance(codec, str):
            find_codec(codec)
        return content

    @model_validator(mode="after")
    def _is_bounded(self) -> Self:
        if self.shard_count > MAX_SHARDS or self.shards.records > MAX_RECORDS:
            raise ValueError(
                f"{self.shard_count} shards of {self.shards.records}, at most {MAX_SHARDS}, {MAX_RECORDS}"
            )
        if self.end > MAX_CANDIDATES:
            raise ValueError(f"{self.end} candidates, at most {MAX_CANDIDATES}")
        _ = self.digest  # what JSON reads but cannot write (NaN, lone surrogates) is refused here
        return self

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the plan's file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def count(self) -> int:
        """Return the number of anchors in the set."""
        return self.selection.count if self.selection else self.source.count

    @property
    def start(self) -> int:
        """Return the number of the layer's first candidate."""
        return self.first or 0

    @property
    def end(self) -> int:
        """Return one past the number of the layer's last candidate."""
        return self.start + self.shards.candidates

    @property
    def shard_count(self) -> int:
        """Return the number of shards per layer."""
        return -(-self.count // self.shards.records)

    def shard_range(self, shard: int) -> range:
        """Return the positions (rows of the index) of a shard."""
        first = shard * self.shards.records
        return range(first, min(first + self.shards.records, self.count))

    @cached_property
    def image_fields(self) -> list[str]:
        """Return the endings of the images of a record, in tar order."""
        return image_fields(
            self.start, self.shards.candidates, self.codec.ending, self.shards.include_anchors
        )

    @property
    def codec(self) -> Codec:
        """Return how the images are coded."""
        return CODECS[self.shards.codec]

    @property
    def sampler_text(self) -> str:
        """Return the sampler's settings as a text for people."""
        return ", ".join(f"{key} {value}" for key, value in sorted(self.sampler.items()))

    def revised(self, **changes: Any) -> "Plan":
        """Return this plan with other values of some fields; a plain copy would keep the cached digest.

        Raises:
            InputError: a value is out of bounds.
        """
        fields = {name: getattr(self, name) for name in type(self).model_fields} | changes
        plain = {}
        for name, value in fields.items():
            plain[name] = value.model_dump() if isinstance(value, BaseModel) else value

        try:
            return Plan.model_validate(plain)
        except ValidationError as error:
            raise InputError(
                f"no plan of a shard set: {first_fault(error)}; choose other settings"
            ) from error

    def to_bytes(self) -> bytes:
        """Return the bytes of the plan's file; optional fields that say nothing are left out."""
        fields = self.model_dump(mode="json")
        return canonical_json({key: value for key, value in fields.items() if value is not None})


def indices_digest(indices_N: np.ndarray) -> str:
    """Return the 128-bit BLAKE2b of source indices as 64-bit little-endian integers, which names a selection."""
    content = np.ascontiguousarray(indices_N, dtype="<i8").tobytes()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def source_selection(anchors: ImageSource) -> Selection | None:
    """Return the selection of the anchors that were kept, None where none was left out."""
    if len(anchors) == anchors.source_count:
        return None
    return Selection(count=len(anchors), digest=indices_digest(anchors.indices_N))


def source_plan(anchors: ImageSource) -> SourcePlan:
    """Describe opened anchors; every image's bytes are read once for the digest."""
    return SourcePlan(
        name=anchors.source.name,
        split=anchors.config.split,
        licence=anchors.source.licence,
        count=anchors.source_count,
        size=anchors.size,
        resize=anchors.config.resize,
        digest=anchors.digest,
        classes=None if anchors.class_names is None else list(anchors.class_names),
        label_rule=anchors.source.label_rule or None,
        **anchors.pixel_record,
    )


def follow_plan(anchors: ImageSource, source: SourcePlan) -> ImageSource:
    """Return anchors opened for an existing set, with their pixels made as its plan says."""
    anchors.use_pixels(source.background, source.bits, source.range)
    return anchors


def read_plan(root: Path, layer: int = 0) -> Plan:
    """Read the plan of a layer of the set at `root`.

    Raises:
        InputError: no set there, another schema version, or not a plan.
    """
    path = plan_path(root, layer)
    return parse_metadata(Plan, read_json(path), str(path))


def check_plan(root: Path, plan: Plan) -> bool:
    """Return True if `root` already holds a set of this plan, False if it is free.

    Raises:
        InputError: another plan is there (naming what differs), or the folder holds something else.
    """
    found = owner_of(root, PLAN, "shard set")
    if found is not None and found not in (plan.to_bytes(), _as_written_before(plan).to_bytes()):
        differences = ", ".join(differing_fields(read_plan(root), plan)) or "the file's formatting"
        raise InputError(
            f"{root} was made by another plan ({differences}); choose another --out or restore those settings"
        )

    return found is not None


def _as_written_before(plan: Plan) -> Plan:
    """Return the plan as versions wrote it that kept no names of classes; with other labels it is another plan."""
    if plan.source.classes is None or plan.source.label_rule:
        return plan
    return plan.revised(source=plan.source.model_copy(update={"classes": None}))


def write_plan(root: Path, plan: Plan) -> None:
    """Start or resume the set at `root`; raises as `check_plan`, and then touches nothing."""
    if not check_plan(root, plan):
        write_file(root / PLAN, plan.to_bytes())


def differing_fields(old: Plan, new: Plan) -> list[str]:
    """Return `section.key: old there, new here` for every field in which two plans differ."""
    return differences(old.model_dump(mode="json"), new.model_dump(mode="json"))
