"""Images that a diffusion model makes by itself, without an anchor: for sample grids, probes and checks."""

from collections.abc import Iterator
from typing import Any

import torch

from .config import SamplerConfig
from .keyed_noise import Stream, keyed_normal, noise_keys
from .schedulers import clip_predicted_x0, make_scheduler


def draw_images(
    unet: torch.nn.Module,
    noise_schedule: dict[str, Any],
    size: int,
    count: int,
    steps: int = 20,
    batch: int = 256,
    clip: bool = True,
) -> Iterator[torch.Tensor]:
    """Draw `count` images `(B, 3, size, size)`, batch by batch, by UniPC.

    Image n is a pure function of n, so that grids drawn at different times of a training show the same images grow.

    Args:
        clip: clamp the predicted x0 to [-1, 1] at each step; False gives the values that the model makes by itself.
    """
    device = next(unet.parameters()).device
    config = SamplerConfig(scheduler="unipc", steps=steps, eta=0, clip=clip)

    for start in range(0, count, batch):
        # x_T, by the images' numbers
        names = [f"image {number}" for number in range(start, min(start + batch, count))]
        x = keyed_normal(noise_keys(0, names, device), (3, size, size), 0, 0, Stream.INITIAL)
        scheduler = make_scheduler(config, noise_schedule)

        # x_T to x_0
        for timestep in scheduler.timesteps.tolist():
            with torch.inference_mode():
                epsilon = unet(x, timestep).sample
                if clip:
                    x = clip_predicted_x0(x, epsilon, float(scheduler.alphas_cumprod[timestep]))
                x = scheduler.step(epsilon, timestep, x).prev_sample

        yield x
