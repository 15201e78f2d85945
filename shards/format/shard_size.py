"""Choose how many anchors a shard gets, from the bytes that it is to have."""

import numpy as np

from ..sources.images import ImageSource
from .codec import encode
from .config import ShardsConfig
from .plan import MAX_RECORDS

SAMPLE = 64
"""Anchors that are encoded to know the bytes of a record."""
BLOCK = 512
"""Of a tar: a member is a block of header and its bytes, padded to whole blocks."""
JSON_BYTES, JSON_BYTES_PER_IMAGE = 200, 48
MEGABYTE = 1_000_000


def record_bytes(anchors: ImageSource, shards: ShardsConfig) -> float:
    """Estimate the bytes of a record in the tar, from some anchors; candidates are taken to compress like these."""
    sizes = []
    for place in anchors.spread(SAMPLE):
        content = encode(anchors[place].image, shards.codec)
        sizes.append(_in_tar(len(content)))

    images = shards.candidates + (1 if shards.include_anchors else 0)
    json = _in_tar(JSON_BYTES + JSON_BYTES_PER_IMAGE * images)
    return images * float(np.mean(sizes)) + json


def with_records(shards: ShardsConfig, anchors: ImageSource) -> ShardsConfig:
    """Return the settings with `records` decided by `megabytes`, where these are given.

    So the plan has the number alone, and the cuts are known before an image is made. It is rounded down to two digits:
    libraries of other versions, whose images differ by some bytes, mostly come to the same number.
    """
    if not shards.megabytes:
        return shards

    wanted = int(shards.megabytes * MEGABYTE / record_bytes(anchors, shards))
    records = min(max(1, wanted), MAX_RECORDS)
    unit = 10 ** max(0, len(str(records)) - 2)
    return shards.model_copy(update={"records": records // unit * unit, "megabytes": 0.0})


def _in_tar(size: int) -> int:
    return BLOCK + -(-size // BLOCK) * BLOCK
