"""Define the recipe section `[shards]`."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from ...core import Section


class ShardsConfig(Section):
    """Says how the shard set is cut and coded.

    >>> ShardsConfig(candidates=4).codec
    'webp'
    """

    added: ClassVar[Mapping[str, Any]] = {"megabytes": 0.0}

    candidates: int = Field(default=8, ge=1, le=256)
    """K, the number of synthetic positives per anchor."""
    records: int = Field(default=1024, ge=1)
    """Anchors per shard: the unit of work and of retry."""
    megabytes: float = Field(default=0.0, ge=0)
    """The size of a shard in megabytes (10^6 bytes). The number of anchors is decided by it when the set is planned, in
    the place of `records`; 0 goes by `records`."""
    codec: Literal["webp", "png", "webp-90", "jpeg-95"] = "webp"
    """`webp` and `png` are lossless; WebP is a third smaller and decodes as fast. `webp-90` and `jpeg-95`, named after
    their quality, lose a little: for photographs of 128 pixels and more, docs/format.md has figures."""
    include_anchors: bool = True
    """False writes candidates only, for sources that may not be passed on."""
