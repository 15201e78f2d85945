"""What a plan will cost: bytes from encoded anchors, time from a few U-Net calls on the device at hand."""

import time
from dataclasses import dataclass

import numpy as np
import torch

from ..shards import Anchors, Plan, encode
from .sampler import Sampler

SAMPLE, TAR_OVERHEAD, JSON_BYTES = 64, 1024, 512


@dataclass(frozen=True)
class Estimate:
    """Bytes of the set and seconds of one device."""

    bytes: float
    seconds: float
    device: str


def estimate(plan: Plan, anchors: Anchors, sampler: Sampler, seconds: float = 10.0) -> Estimate:
    """Cost of a plan; candidates are taken to compress like anchors, and U-Net calls to be all of the time.

    Args:
        seconds: how long to measure U-Net calls, at least one.
    """
    chosen = np.linspace(0, len(anchors) - 1, min(SAMPLE, len(anchors))).astype(int)
    sizes = [len(encode(anchors[int(index)].image, plan.shards.codec)) for index in chosen]
    images = len(plan.image_fields)
    per_record = images * (float(np.mean(sizes)) + TAR_OVERHEAD) + JSON_BYTES + TAR_OVERHEAD
    shards = [len(plan.shard_range(shard)) for shard in range(plan.shard_count)]
    calls = sum(-(-records // sampler.config.micro_batch) for records in shards) * plan.shards.candidates
    device = torch.cuda.get_device_name() if sampler.device.type == "cuda" else "CPU"
    return Estimate(
        per_record * plan.count, calls * sampler.config.steps * _seconds_per_step(anchors, sampler, seconds), device
    )


def _seconds_per_step(anchors: Anchors, sampler: Sampler, seconds: float) -> float:
    """Seconds of one denoising step of one candidate of a micro-batch, the anchor's encoder pass included."""
    batch = [anchors[index] for index in range(min(sampler.config.micro_batch, len(anchors)))]
    images, keys = np.stack([anchor.image for anchor in batch]), [anchor.key for anchor in batch]
    two_steps = Sampler(sampler.model, sampler.config.model_copy(update={"steps": 2}), sampler.device)
    two_steps(images, keys, 1)
    started, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - started < seconds:
        two_steps(images, keys, 1)
        steps += 2
    return (time.perf_counter() - started) / steps
