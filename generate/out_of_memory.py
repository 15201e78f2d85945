"""Running out of memory: said in one line, with the largest micro-batch that fits."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

from ..core import WorkError
from .sampler import Sampler


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for all that torch raises when a device, or the machine, has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


@contextlib.contextmanager
def explaining_out_of_memory(sampler: Sampler, size: int) -> Iterator[None]:
    """Turn running out of memory into one line.

    Args:
        size: of the anchors, in pixels.

    Raises:
        WorkError: says the largest micro-batch of half the one in use, a quarter, … that fits.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        tried = sampler.config.micro_batch
    else:
        return

    # Behind the handler, where the failed call's tensors are no longer held.
    fits = largest_micro_batch(sampler, size, tried // 2)
    advice = (
        f"set sampler.micro_batch={fits}, the largest that fits"
        if fits
        else "not even a micro-batch of 1 fits"
    )
    if sampler.model.latent and sampler.decode_batch > 1:
        advice += f", or a sampler.decode_batch below {sampler.decode_batch}"
    raise WorkError(f"out of memory on {sampler.device} with sampler.micro_batch={tried}; {advice}")


def largest_micro_batch(sampler: Sampler, size: int, first: int) -> int:
    """Return the largest of `first`, `first / 2`, … with which a step of one candidate runs through; 0 if none does."""
    micro_batch = first
    while micro_batch:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

        config = sampler.config.model_copy(update={"micro_batch": micro_batch, "steps": 1})
        keys = [str(number) for number in range(micro_batch)]
        try:
            anchors = np.zeros((micro_batch, size, size, 3), np.uint8)
            classes = [0] * micro_batch if sampler.model.condition else None
            Sampler(sampler.model, config, sampler.device)(anchors, keys, 1, classes=classes)
            return micro_batch
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            micro_batch //= 2

    return 0
