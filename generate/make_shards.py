"""Share the shards of a set out among processes, and make them."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..core import InputError, Report, WorkError, run_stamp
from ..shards import (
    DiffusionPlan,
    ImageSource,
    Plan,
    Record,
    ShardsConfig,
    ShardWriter,
    seal_if_complete,
)
from ..shards.format.commits import read_commit
from ..shards.format.event_log import log_event
from ..shards.format.plan import source_plan, source_selection
from ..shards.format.seal import unfinished_shards
from ..shards.format.shard_size import with_records
from ..shards.format.writer import RecordTar
from ..shards.sources.images import AnchorLookup
from .config import SamplerConfig
from .model import DiffusionModel
from .out_of_memory import explaining_out_of_memory
from .sampler import Sampler


def make_plan(
    anchors: ImageSource, model: DiffusionModel, sampler: SamplerConfig, shards: ShardsConfig
) -> Plan:
    """Return the plan of a shard set: everything that determines its content."""
    return Plan(
        source=source_plan(anchors),
        diffusion=DiffusionPlan(
            origin=model.origin,
            digest=model.digest,
            condition=model.condition.plan if model.condition else None,
            latent=model.latent.plan if model.latent else None,
        ),
        sampler=sampler.decided().recorded(),
        shards=with_records(shards, anchors),
        selection=source_selection(anchors),
    )


def assigned_shards(count: int, part: tuple[int, int], rank: int, world_size: int) -> list[int]:
    """Return the shards of a process: s belongs to part s mod n, and there to process (s div n) mod world size."""
    number, parts = part
    return [s for s in range(count) if s % parts == number and s // parts % world_size == rank]


def make_shards(
    root: Path,
    plan: Plan,
    anchors: AnchorLookup,
    sampler: Sampler,
    part: tuple[int, int] = (0, 1),
    rank: int = 0,
    world_size: int = 1,
    report: Report | None = None,
    layer: int = 0,
) -> str | None:
    """Make this process's unfinished shards of a layer, then seal the set if every shard of every process is there.

    Args:
        anchors: the anchors of the set by position.
        part: (i, n): only shards s with s mod n = i.
        report: called with (anchors done, anchors of this process that were left).

    Returns:
        The set ID, or None while other processes or parts still work.
    """
    mine = assigned_shards(plan.shard_count, part, rank, world_size)
    todo = unfinished_shards(root, plan, layer, mine)
    total = sum(len(plan.shard_range(shard)) for shard in todo)
    done = 0

    def advance(records: int) -> None:
        nonlocal done
        done += records
        if report:
            report(done, total)

    for shard in todo:
        # Another writer may have made it since.
        if read_commit(root, plan, layer, shard) is not None:
            advance(len(plan.shard_range(shard)))
            continue

        started = time.time()
        try:
            with (
                explaining_out_of_memory(sampler, plan.source.size),
                ShardWriter(root, plan, layer, shard) as writer,
            ):
                fill_shard(writer, plan, shard, anchors, sampler, advance)
                commit = writer.commit(run_facts(sampler, started, world_size))
        except (WorkError, InputError, OSError) as error:
            log_event(root, "failed", layer=layer, shard=shard, rank=rank, message=str(error))
            raise

        # Note how fast it was.
        spent = time.time() - started
        images = commit.records * plan.shards.candidates
        rate = round(images / max(1e-3, spent), 3)
        log_event(
            root,
            "shard",
            layer=layer,
            shard=shard,
            rank=rank,
            seconds=round(spent, 3),
            candidates_per_second=rate,
        )

    return seal_if_complete(root, plan, layer)


def fill_shard(
    writer: ShardWriter | RecordTar,
    plan: Plan,
    shard: int,
    anchors: AnchorLookup,
    sampler: Sampler,
    advance: Callable[[int], None] = lambda _: None,
) -> None:
    """Make the candidates of a shard, a micro-batch of anchors at a time, and add the records to its writer.

    Args:
        advance: called with the number of anchors of every finished micro-batch.

    Raises:
        WorkError: every candidate of most anchors is of one colour, so the model cannot be one for these images.
    """
    indices = plan.shard_range(shard)
    micro_batch = sampler.config.micro_batch
    constant: list[str] = []

    for start in range(0, len(indices), micro_batch):
        # Sample
        batch = [anchors[index] for index in indices[start : start + micro_batch]]
        keys = [anchor.key for anchor in batch]
        images_BHWC = np.stack([anchor.image for anchor in batch])
        condition = sampler.model.condition
        classes = condition.classes_of(batch) if condition else None
        candidates_BKHWC = sampler(images_BHWC, keys, plan.shards.candidates, plan.start, classes)

        # Write
        for anchor, candidates_KHWC in zip(batch, candidates_BKHWC, strict=True):
            writer.add(Record(anchor, candidates_KHWC))
            if _all_constant(candidates_KHWC):
                constant.append(anchor.key)

        advance(len(batch))

    # Refuse a shard of flat images
    if 2 * len(constant) > len(indices):
        named = ", ".join(constant[:4])
        raise WorkError(
            f"shard {shard}: every candidate of {len(constant)} of {len(indices)} anchors is one flat colour "
            f"({named}, …); is this the model for these images?"
        )


def _all_constant(images_KHWC: np.ndarray) -> bool:
    return bool((images_KHWC == images_KHWC[:, :1, :1]).all())


def run_facts(sampler: Sampler, started: float, world_size: int) -> dict[str, object]:
    """Return what could change the bits of a shard, and when and how fast it was made, for its commit record."""
    device = sampler.device
    on_gpu = device.type == "cuda"

    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else f"cpu {platform.machine()}",
        "dtype": sampler.config.dtype,
        "micro_batch": sampler.config.micro_batch,
        "threads": None if on_gpu else sampler.config.threads,
        "processes": world_size,
        **run_stamp("clsp", "torch", "diffusers", "numpy", "pillow"),
        "seconds": round(time.time() - started, 3),
    }
