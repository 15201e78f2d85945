"""Keep decoded pixels on a device, filled from the cache of mapped files."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ...core import InputError
from .pixel_cache import Decode, LayerPixels, Member, PixelCache, gigabytes


class DevicePixels:
    """Keeps a set's pixels in the memory of a device; an image goes there when it is first asked for.

    In a process of workers, which has no device, it is the cache of mapped files alone.

    Args:
        cache: where the pixels come from.
        device: a GPU; every process has an array on its own.

    Raises:
        InputError: the device has not enough memory.
    """

    def __init__(self, cache: PixelCache, device: torch.device):
        self.cache = cache
        self.device = device
        _check_room(cache.bytes, device)
        self.layers = [_DeviceLayer(layer, device) for layer in cache.layers]

    def tensor(self, members: Sequence[Member], decode: Decode) -> torch.Tensor:
        """Return the pixels of members on the device, `(B, H, W, 3)` uint8."""
        if get_worker_info() is not None:
            return self.cache.tensor(members, decode)

        first = members[0][0]
        if all(layer is first for layer, _, _ in members):
            return self.layers[first.number].tensor(members, decode)

        size = self.cache.shards.size
        shape = (len(members), size, size, 3)
        images_BHWC = torch.empty(shape, dtype=torch.uint8, device=self.device)
        for layer in self.layers:
            number = layer.pixels.number
            rows = [row for row, member in enumerate(members) if member[0].number == number]
            if rows:
                found = layer.tensor([members[row] for row in rows], decode)
                images_BHWC.index_copy_(0, _sent(np.array(rows), self.device), found)

        return images_BHWC

    def is_filled(self, with_candidates: bool) -> bool:
        """Return True if hardly an image that is asked for has still to be decoded."""
        return self.cache.is_filled(with_candidates)

    def finish(self) -> None:
        """Close the files to which nothing is left to add."""
        self.cache.finish()


class _DeviceLayer:
    """Holds the array of a layer on the device, and which of its images are there."""

    def __init__(self, pixels: LayerPixels, device: torch.device):
        rows = pixels.shape[0] * pixels.shape[1]
        self.pixels = pixels
        self.device = device
        self.there_R = np.zeros(rows, bool)
        self.images_RHWC = torch.empty((rows, *pixels.shape[2:]), dtype=torch.uint8, device=device)

    def __getstate__(self) -> dict[str, object]:
        return {"pixels": self.pixels}  # of all that a worker needs

    def tensor(self, members: Sequence[Member], decode: Decode) -> torch.Tensor:
        """Return the pixels of members of this layer on the device."""
        places_B = self.pixels.places(members)

        # Those that are not there yet
        missing = np.flatnonzero(~self.there_R[places_B])
        if len(missing):
            found_BHWC = self.pixels.gather([members[row] for row in missing.tolist()], decode)
            places = _sent(places_B[missing], self.device)
            self.images_RHWC.index_copy_(0, places, _sent(found_BHWC, self.device))
            self.there_R[places_B[missing]] = True

        return self.images_RHWC.index_select(0, _sent(places_B, self.device))


def _sent(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """Return an array on the device, sent there without waiting."""
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def _check_room(needed: int, device: torch.device) -> None:
    if device.type != "cuda":
        return

    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise InputError(
            f"the decoded pixels are too large for {device}: they need {gigabytes(needed)}, {gigabytes(free)} free; "
            "choose pretrain.cache=memory"
        )
