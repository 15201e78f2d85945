"""Define the recipe section `[anchors]`."""

from typing import Literal

from pydantic import Field

from ...core import Section


class AnchorsConfig(Section):
    """Says where the anchors come from and what geometry they get.

    >>> AnchorsConfig(path="digits", limit=10).resize
    'crop'
    """

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
