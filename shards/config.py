"""The recipe sections `[anchors]` and `[shards]`, and the base class of all sections."""

from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """One section of a recipe: immutable, and a key it does not know is an error.

    Plans and runs record their settings. A key that joined a section later is left out of a record while it has the
    value that older versions acted by, so older records, and the digests made of them, stay as they are.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    added: ClassVar[Mapping[str, Any]] = {}
    """The keys that joined later, each with the value that its absence from a record means."""

    def recorded(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Return the settings in the form that plans and runs record, ready for JSON.

        Args:
            leave_out: keys that do not belong into the record.
        """
        record = self.model_dump(mode="json", exclude=set(leave_out))
        for name in list(record):
            value = getattr(self, name)
            if name in self.added and value == self.added[name]:
                del record[name]
            elif isinstance(value, Section):
                record[name] = value.recorded()
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """Read the settings that a plan or a run of this or an older version recorded.

        Raises:
            pydantic.ValidationError: they are not settings of this section.
        """
        return cls.model_validate({**cls.added, **record})


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
