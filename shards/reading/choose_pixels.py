"""Choose where decoded pixels are kept: nowhere, in mapped files, or on a device."""

import logging
import shutil
from typing import Literal

import torch

from ...core import InputError, available_memory
from .device_pixels import DevicePixels
from .pixel_cache import PixelCache, Pixels, existing_part, gigabytes
from .shard_set import ShardSet

log = logging.getLogger(__name__)

CacheKind = Literal["none", "memory", "device", "auto"]

AUTO_BYTES = 2 << 30
"""What `auto` takes of a disk without being asked: CIFAR-10 with eight candidates has 1.4 GB."""


def check_pixels(shards: ShardSet, kind: CacheKind) -> None:
    """Check that pixels can be kept as asked for; makes nothing.

    Raises:
        InputError: they are too large for the disk, or the cache folder cannot be written.
    """
    if kind in ("memory", "device"):
        PixelCache(shards).check()


def open_pixels(
    shards: ShardSet, kind: CacheKind, device: torch.device | None = None, quiet: bool = False
) -> Pixels | None:
    """Return the cache of decoded pixels that is asked for, None for none.

    Args:
        kind: `memory` are mapped files in the cache folder; `device` are these and an array on the device, on a CPU
            the same as `memory`. `auto` is `memory` where the arrays have at most 2 GiB, and at most half of the free
            memory and, where they are still to be made, half of the free disk; else none, which a line tells.
        device: of `device`.
        quiet: leaves that line to another process.

    Raises:
        InputError: the pixels do not fit, or the cache folder cannot be written.
    """
    if kind == "none":
        return None

    cache = PixelCache(shards)
    if kind == "auto":
        reason = _why_not(cache)
        if reason:
            log.log(logging.DEBUG if quiet else logging.WARNING, "no pixel cache: %s", reason)
            return None
    else:
        cache.open()

    if kind == "device" and device is not None and device.type != "cpu":
        return DevicePixels(cache, device)
    return cache


def _why_not(cache: PixelCache) -> str:
    """Open the cache and return an empty text, or return why `auto` does without it."""
    size = cache.bytes
    advice = "set pretrain.cache=memory to have it nevertheless"
    if size > AUTO_BYTES:
        return f"it would have {gigabytes(size)}, auto takes {gigabytes(AUTO_BYTES)}; {advice}"

    memory = available_memory()
    if memory is not None and size > memory // 2:
        return f"it would have {gigabytes(size)}, {gigabytes(memory)} of memory are free; {advice}"

    try:
        free = shutil.disk_usage(existing_part(cache.folder)).free
        if cache.bytes_needed > free // 2:
            needed = gigabytes(cache.bytes_needed)
            return f"it needs {needed} of the {gigabytes(free)} free in {cache.folder}; {advice}"
        cache.open()
    except InputError as error:
        return str(error)

    return ""
