"""Whether a diffusion model was trained on images scaled to [-1, 1], from what it makes by itself."""

from typing import Any

import numpy as np
import torch

from ..shards import Anchors, InputError
from .config import SamplerConfig
from .keyed_noise import Stream, keyed_normal, noise_keys
from .model import DiffusionModel
from .sampler import to_model_range
from .schedulers import make_scheduler

IMAGES, STEPS = 16, 10
ANCHORS = 256


def check_statistics(model: DiffusionModel, anchors: Anchors, device: torch.device | str = "cpu") -> None:
    """Refuse a model whose own images are not in [-1, 1] but in [0, 1], in [0, 255], or standardised.

    Raises:
        InputError: naming what was found.
    """
    chosen = np.linspace(0, len(anchors) - 1, min(ANCHORS, len(anchors))).astype(int)
    real = to_model_range(np.stack([anchors[int(place)].image for place in chosen]))
    made = _unconditional(model, anchors.size, torch.device(device))
    lowest, highest = made.quantile(0.01), made.quantile(0.99)
    found = ""
    if real.quantile(0.01) < -0.5 and lowest > -0.2:
        found = "in [0, 1]" if highest < 1.5 else "in [0, 255]"
    elif abs(made.std() - 1) < 0.1 and abs(made.mean()) < 0.2 and real.std() < 0.8 and highest > 1.2:
        found = "standardised to mean 0 and deviation 1"
    if found:
        raise InputError(
            f"diffusion model {model.origin} makes values from {lowest:.2f} to {highest:.2f} (1 and 99 %), as if "
            f"trained on images {found}; expected one trained on images scaled to [-1, 1]"
        )


def _unconditional(model: DiffusionModel, size: int, device: torch.device) -> torch.Tensor:
    """Values of `IMAGES` images that the model makes without an anchor, before clipping, by a solver of few steps."""
    scheduler = make_scheduler(SamplerConfig(scheduler="unipc", steps=STEPS, eta=0), model.noise_schedule)
    unet: Any = model.unet.to(device)
    x = keyed_normal(noise_keys(0, [str(n) for n in range(IMAGES)], device), (3, size, size), 0, 0, Stream.INITIAL)
    with torch.inference_mode():
        for timestep in scheduler.timesteps.tolist():
            x = scheduler.step(unet(x, timestep).sample, timestep, x).prev_sample
    return x.cpu().flatten()
