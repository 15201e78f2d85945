"""Define the recipe section `[anchors]`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ...core import Section
from .decoding import parse_colour
from .layout import Layout


class AnchorsConfig(Section):
    """Says where the anchors come from and what geometry they get.

    >>> AnchorsConfig(path="digits", limit=10).resize
    'crop'
    """

    added: ClassVar[Mapping[str, Any]] = {
        "layout": "auto",
        "background": "white",
        "bits": 0,
        "range": None,
        "upscale": False,
    }

    path: str = Field(default="digits", min_length=1)
    """A folder of images, a parquet, arrow or WebDataset tar file or a folder of them, a folder that `save_to_disk`
    wrote, a hub id, or `digits` (scikit-learn's, embedded)."""
    split: str = "train"
    layout: Layout = "auto"
    """What the folders of images are: `classes`, `splits` (whose folders are classes) or `flat` (neither); `auto` goes
    by their names."""
    label: str = ""
    """The column of the classes, in a data set or in a folder's table; empty: one with a usual name, such as `label`.
    Where folders tell the classes, `label` stands for these."""
    limit: int = Field(default=0, ge=0)
    """Use the first `limit` images only; 0 uses all."""
    size: int = Field(default=0, ge=0)
    """Side length in pixels; 0 keeps the images as they are, which must then be square and of one size."""
    resize: Literal["crop", "squash"] = "crop"
    """`crop` scales the shorter side to `size` and cuts the centre; `squash` ignores the aspect ratio."""
    upscale: bool = False
    """Allow a `size` that more than half of the images do not have; a few small ones are enlarged in any case."""
    background: str = "white"
    """The colour behind transparent pixels, by name or `#rrggbb`; `none` takes the colour that is hidden in them."""
    bits: int = Field(default=0, ge=0, le=16)
    """Bits in use of 16-bit grey images, 8 to 16; 0 measures them: the bits of the largest value of all images."""
    range: tuple[float, float] | None = None
    """The values that become black and white, for images of floats or of more than 8 bits; needed for floats and 32-bit
    integers."""
    on_error: Literal["fail", "skip"] = "fail"
    """`fail`: an image that does not decode ends the work, and so does more than 1 % of files that may be images and
    are not taken. `skip`: images that do not decode are found beforehand, listed and left out."""

    @field_validator("background")
    @classmethod
    def _is_a_colour(cls, background: str) -> str:
        if background != "none":
            parse_colour(background)
        return background

    @field_validator("bits")
    @classmethod
    def _holds_a_byte(cls, bits: int) -> int:
        if 0 < bits < 8:
            raise ValueError(f"{bits} bits; expected 8 to 16, or 0 to measure them")
        return bits

    @field_validator("range")
    @classmethod
    def _ascends(cls, range: tuple[float, float] | None) -> tuple[float, float] | None:
        if range is not None and not range[0] < range[1]:
            raise ValueError(f"{range[0]:g} to {range[1]:g}; expected the lower value first")
        return range
