"""The recipe sections `[anchors]` and `[shards]`, and the base class of all sections."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of a recipe: immutable, and a key it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class AnchorsConfig(Section):
    """Where the anchors come from and what geometry they get."""

    path: str = Field(default="digits", min_length=1)
    """A hub id, a local parquet file, a local folder (images or parquet), or `digits` (scikit-learn's, embedded)."""
    split: str = "train"
    label: str = ""
    """The column of the class numbers; empty: `label` or a usual variant, else the first column of class labels."""
    limit: int = Field(default=0, ge=0)
    """Use the first `limit` images only; 0 uses all."""
    size: int = Field(default=0, ge=0)
    """Side length in pixels; 0 keeps the images as they are, which must then be square and of one size."""
    resize: Literal["crop", "squash"] = "crop"
    """`crop` scales the shorter side to `size` and cuts the centre; `squash` ignores the aspect ratio."""
    on_error: Literal["fail", "skip"] = "fail"
    """An anchor that does not decode ends the work when it is reached, or is found beforehand, listed and left out."""


class ShardsConfig(Section):
    """How the shard set is cut and coded."""

    candidates: int = Field(default=8, ge=1, le=256)
    """K, the number of synthetic positives per anchor."""
    records: int = Field(default=1024, ge=1)
    """Anchors per shard: the unit of work and of retry."""
    codec: Literal["webp", "png"] = "webp"
    """Both are lossless; WebP is a third smaller and decodes as fast."""
    include_anchors: bool = True
    """False writes candidates only, for sources that may not be passed on."""
