"""Make a small set without a diffusion model, to try things out with."""

from pathlib import Path

import numpy as np

from .format.config import ShardsConfig
from .format.plan import DiffusionPlan, Plan, source_plan, write_plan
from .format.seal import seal_if_complete
from .format.writer import Record, ShardWriter
from .reading.shard_set import ShardSet
from .sources.config import AnchorsConfig
from .sources.images import ImageSource


def make_example_set(root: Path, anchors: int = 4) -> ShardSet:
    """Make and open a set of digits with two candidates each: the anchor itself and its mirror image.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = make_example_set(Path(folder), anchors=5)
    ...     len(shards), shards.candidates, shards.shard_sizes
    (5, 2, [2, 2, 1])
    """
    source = ImageSource(AnchorsConfig(path="digits", limit=anchors))
    plan = Plan(
        source=source_plan(source),
        diffusion=DiffusionPlan(origin="none", digest=""),
        sampler={},
        shards=ShardsConfig(candidates=2, records=2),
    )
    write_plan(root, plan)

    for shard in range(plan.shard_count):
        with ShardWriter(root, plan, 0, shard) as writer:
            for position in plan.shard_range(shard):
                anchor = source[position]
                mirrored = anchor.image[:, ::-1]
                writer.add(Record(anchor, np.stack([anchor.image, mirrored])))

            writer.commit({"by": "make_example_set"})

    seal_if_complete(root, plan)
    return ShardSet(root)
