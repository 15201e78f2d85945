"""Views: augmented, normalised images, with every parameter drawn per image from a stream of its own."""

from contextlib import nullcontext
from typing import Any

import kornia.augmentation as K
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..core import stream_seed, to_device
from .config import AugmentConfig, PretrainConfig
from .crops import SmoothResizedCrop

CHUNK = 256
"""Images augmented at a time on a CPU, where larger batches leave the cache."""


def build_augmentation(config: AugmentConfig, size: int, batched: bool = False) -> nn.Module:
    """Build SimCLR's chain at `size` pixels: crop, colour jitter, greyscale, blur, solarise, flip.

    kornia draws everything per image except the order of the four colour operations, which is per batch (on a CPU per
    `CHUNK`). Each operation gives torchvision's PIL result to 1.5 grey levels, hue to 13 (1.1 in the mean), since PIL
    rounds hues. Images may be larger than `size`; their crops are scaled down smoothly.

    Args:
        batched: crop all images in one operation, for GPUs: the same boxes, sampled up to half a pixel away.
    """
    # Crop
    how: Any = (
        {"cropping_mode": "resample"}
        if batched
        else {"cropping_mode": "slice", "align_corners": False}
    )
    steps: list[nn.Module] = [
        SmoothResizedCrop(
            (size, size), scale=(config.crop_scale, 1.0), p=1.0, batched=batched, **how
        )
    ]

    # Colour
    jitter: Any = (config.brightness, config.contrast, config.saturation, config.hue)
    if any(jitter):
        steps.append(K.ColorJitter(*jitter, p=config.jitter_probability))

    if config.grey_probability:
        steps.append(K.RandomGrayscale(p=config.grey_probability))

    # Blur, solarise, flip
    if config.blur_probability:
        kernel = max(3, size // 10 // 2 * 2 + 1)
        steps.append(K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=config.blur_probability))

    if config.solarise_probability:  # kornia would draw the threshold and add a shift
        steps.append(K.RandomSolarize((0.5, 0.5), (0.0, 0.0), p=config.solarise_probability))

    if config.flip:
        steps.append(K.RandomHorizontalFlip(p=0.5))

    return nn.Sequential(*steps)


class _PinnedCopies(TorchFunctionMode):
    """Lets copies to a device start from page-locked memory inside the block.

    kornia draws its parameters on the host, about twenty a view, and copies each from pageable memory.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.Tensor.to and kwargs.get("non_blocking") and args[0].device.type == "cpu":
            args = (args[0].pin_memory(), *args[1:])

        return func(*args, **kwargs)


class Views:
    """Makes view 1, 2, 3, … of a batch; view v of a step depends on (seed, step, rank, v) and the images alone.

    So all methods see the same views 1 and 2, with or without a third.

    >>> views = Views(PretrainConfig(), size=8, device=torch.device("cpu"))
    >>> images_BCHW = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    >>> view1 = views(images_BCHW, view=1, step=0, rank=0)
    >>> view1.shape, view1.dtype
    (torch.Size([4, 3, 8, 8]), torch.float32)
    >>> torch.equal(view1, views(images_BCHW, view=1, step=0, rank=0))
    True
    >>> torch.equal(view1, views(images_BCHW, view=2, step=0, rank=0))
    False
    """

    def __init__(self, config: PretrainConfig, size: int, device: torch.device):
        self.seed = config.seed
        self.device = device
        self.augmentation = build_augmentation(
            config.augmentation, size, batched=device.type == "cuda"
        )
        self.mean = torch.tensor(config.mean, device=device)[:, None, None]
        self.std = torch.tensor(config.std, device=device)[:, None, None]

    def __call__(self, images_BCHW: torch.Tensor, view: int, step: int, rank: int) -> torch.Tensor:
        """Return a view of uint8 images `(B, 3, H, W)`, of its own size or larger: float32, normalised."""
        torch.manual_seed(stream_seed(self.seed, step, rank, "view", view))
        images = to_device(images_BCHW, self.device).float() / 255
        chunk = CHUNK if self.device.type == "cpu" else len(images)
        copying = _PinnedCopies() if self.device.type == "cuda" else nullcontext()

        with torch.no_grad(), copying:
            parts = [self.augmentation(part) for part in images.split(chunk)]
            augmented = torch.cat(parts)
            return (augmented - self.mean) / self.std
