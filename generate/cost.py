"""Estimate what a plan will cost: bytes from encoded anchors, time from a few U-Net calls on the device at hand."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from ..core import exact_precision
from ..shards import ImageSource, Plan
from ..shards.format.shard_size import record_bytes
from .pixels import to_model_range
from .sampler import Sampler
from .schedulers import mixing_timesteps

TIMESTEP = 500
"""Of the U-Net calls that are measured; all take as long."""


@dataclass(frozen=True)
class Estimate:
    """Holds the bytes of the set and the seconds of one device."""

    bytes: float
    seconds: float
    device: str


def estimate(plan: Plan, anchors: ImageSource, sampler: Sampler, seconds: float = 10.0) -> Estimate:
    """Estimate what a plan costs; candidates are taken to compress like anchors, and networks to be all of the time.

    Args:
        seconds: how long to measure U-Net calls, at least one.
    """
    # Micro-batches, the last of a shard often a short one
    shards = [len(plan.shard_range(shard)) for shard in range(plan.shard_count)]
    batches = sum(-(-records // sampler.config.micro_batch) for records in shards)

    # Seconds of a micro-batch: of its samples at every step, of its anchors where they are mixed in
    config = sampler.config
    candidates = plan.shards.candidates
    encoding, decoding = _seconds_per_pass(anchors, sampler, seconds)
    sample_passes = config.steps * candidates
    mixing_steps = len(mixing_timesteps(config, sampler.model.noise_schedule))
    anchor_passes = mixing_steps * (1 if config.share_anchor else candidates)
    spent = sample_passes * (encoding + decoding) + anchor_passes * encoding
    if config.guidance != 1:
        spent *= 2
    spent += _autoencoder_seconds(anchors, sampler, candidates)

    device = torch.cuda.get_device_name() if sampler.device.type == "cuda" else "CPU"
    total = record_bytes(anchors, plan.shards) * plan.count
    return Estimate(total, batches * spent, device)


def _seconds_per_pass(
    anchors: ImageSource, sampler: Sampler, seconds: float
) -> tuple[float, float]:
    """Return the seconds of the two halves of the U-Net for a micro-batch."""
    x_BCHW = _images(anchors, sampler, sampler.config.micro_batch).to(sampler.dtype)
    if sampler.model.latent:
        x_BCHW = torch.zeros(len(x_BCHW), *sampler.model.sample_shape).to(x_BCHW)
    classes_B = None
    if sampler.model.condition is not None:
        classes_B = torch.zeros(len(x_BCHW), dtype=torch.int64, device=sampler.device)

    encoding: list[float] = []
    decoding: list[float] = []

    with torch.inference_mode(), exact_precision(), sampler.pinned_threads():
        # Warm up
        told_B = sampler.passes(classes_B)[0]
        encoded = sampler.encode(x_BCHW, TIMESTEP, told_B)
        sampler.decode(encoded)

        # Measure, twice at least
        started = time.perf_counter()
        spent = 0.0
        while len(encoding) < 2 or spent < seconds:
            encoding.append(_timed(sampler, lambda: sampler.encode(x_BCHW, TIMESTEP, told_B)))
            decoding.append(_timed(sampler, lambda: sampler.decode(encoded)))
            spent = time.perf_counter() - started

    return float(np.median(encoding)), float(np.median(decoding))


def _autoencoder_seconds(anchors: ImageSource, sampler: Sampler, candidates: int) -> float:
    """Return the seconds in which a latent model's autoencoder encodes and decodes a micro-batch; 0 for pixels."""
    if sampler.model.latent is None:
        return 0.0

    autoencoder = sampler.model.latent.autoencoder
    size = sampler.decode_batch
    images_BCHW = _images(anchors, sampler, size)
    batches = -(-sampler.config.micro_batch // size)

    with sampler.pinned_threads():
        latents_BChw = autoencoder.encode(images_BCHW, size)  # warms up
        encoding = _timed(sampler, lambda: autoencoder.encode(images_BCHW, size))
        decoding = _timed(sampler, lambda: list(autoencoder.decode(latents_BChw, size)))

    return batches * (encoding + candidates * decoding)


def _images(anchors: ImageSource, sampler: Sampler, count: int) -> torch.Tensor:
    """Return so many anchors `(B, 3, H, W)` in [-1, 1], some of them again where there are fewer."""
    batch = [anchors[index % len(anchors)].image for index in range(count)]
    return to_model_range(np.stack(batch)).to(sampler.device)


def _timed(sampler: Sampler, work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if sampler.device.type == "cuda":
        torch.cuda.synchronize(sampler.device)
    return time.perf_counter() - started
