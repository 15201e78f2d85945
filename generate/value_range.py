"""Check that a diffusion model was trained on images scaled to [-1, 1], by what it makes by itself."""

import numpy as np
import torch

from ..core import InputError
from ..shards import ImageSource
from .model import DiffusionModel
from .pixels import to_model_range
from .unconditional import draw_images

IMAGES = 16
STEPS = 10
ANCHORS = 256


def check_statistics(
    model: DiffusionModel,
    anchors: ImageSource,
    device: torch.device | str = "cpu",
    clip: bool = True,
) -> None:
    """Refuse a model whose own images are not in [-1, 1] but in [0, 1], in [0, 255], or standardised.

    Latents have no such range; those of a latent model are as its autoencoder scales them. Models with pseudo-classes
    or told features are of `clsp diffusion train`, which scales images itself.

    Args:
        clip: the sampler will clamp to [-1, 1] (`sampler.clip`), so the model must not name another range.

    Raises:
        InputError: naming what was found.
    """
    if model.latent:
        return

    # What its configuration says
    if clip and model.clip_range != 1:
        raise InputError(
            f"diffusion model {model.origin} clips to [-{model.clip_range:g}, {model.clip_range:g}] by its scheduler's "
            "configuration, sampler.clip to [-1, 1]; set sampler.clip=false, or use a model of images in [-1, 1]"
        )

    if model.condition and model.condition.clusters:
        return

    # Values of real images, and of those that it makes
    real = to_model_range(np.stack([anchors[place].image for place in anchors.spread(ANCHORS)]))
    unet = torch.nn.Module.to(model.unet, device)
    classes = model.condition.classes if model.condition else 0
    drawn = draw_images(
        unet, model.noise_schedule, anchors.size, IMAGES, STEPS, clip=False, classes=classes
    )
    made = torch.cat(list(drawn)).cpu().flatten()
    lowest = made.quantile(0.01)
    highest = made.quantile(0.99)

    # What range they tell of
    found = ""
    if real.quantile(0.01) < -0.5 and lowest > -0.2:
        found = "in [0, 1]" if highest < 1.5 else "in [0, 255]"
    elif (
        abs(made.std() - 1) < 0.1 and abs(made.mean()) < 0.2 and real.std() < 0.8 and highest > 1.2
    ):
        found = "standardised to mean 0 and deviation 1"

    if found:
        raise InputError(
            f"diffusion model {model.origin} makes values from {lowest:.2f} to {highest:.2f} (1 and 99 %), as if "
            f"trained on images {found}; expected one trained on images scaled to [-1, 1]"
        )
