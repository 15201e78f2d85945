"""Images that a diffusion model makes by itself, without an anchor: for sample grids, probes and checks."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..core import exact_precision, to_device
from .autoencoder import Autoencoder
from .config import SamplerConfig
from .keyed_noise import Stream, keyed_normal, noise_keys
from .schedulers import (
    PIXEL_BOUNDS,
    Bounds,
    as_epsilon,
    clip_predicted_x0,
    make_scheduler,
    unchecked_solving,
)


def draw_images(
    unet: torch.nn.Module,
    noise_schedule: dict[str, Any],
    size: int,
    count: int,
    steps: int = 20,
    batch: int = 256,
    clip: bool = True,
    classes: int = 0,
    channels: int = 3,
    bounds: Bounds = PIXEL_BOUNDS,
) -> Iterator[torch.Tensor]:
    """Draw `count` images `(B, C, size, size)`, or latents of a latent model, batch by batch, by UniPC.

    Image n is a pure function of n, so that grids drawn at different times of a training show the same images grow. A
    U-Net with C classes makes image n of class n mod C.

    Args:
        clip: clamp the predicted x0 to the bounds at each step; False gives the values that the model makes by itself.
        classes: of the U-Net, without «no class»; 0 for an unconditional one.
        channels: of an image, or of a latent.
        bounds: of images; latents have others.
    """
    device = next(unet.parameters()).device
    shape = (channels, size, size)
    config = SamplerConfig(scheduler="unipc", steps=steps, eta=0, clip=clip)
    prediction = noise_schedule.get("prediction_type", "epsilon")

    for start in range(0, count, batch):
        # x_T, by the images' numbers
        numbers = range(start, min(start + batch, count))
        names = [f"image {number}" for number in numbers]
        x = keyed_normal(noise_keys(0, names, device), shape, 0, 0, Stream.INITIAL)
        scheduler = make_scheduler(config, noise_schedule, device)
        classes_B = None
        if classes:
            classes_B = to_device(torch.tensor([number % classes for number in numbers]), device)

        # x_T to x_0
        for timestep in scheduler.timesteps.tolist():
            with torch.inference_mode(), exact_precision(), unchecked_solving(device):
                alpha_bar = float(scheduler.alphas_cumprod[timestep])
                timesteps_B = torch.full((len(x),), timestep, device=device)
                predicted = unet(x, timesteps_B, class_labels=classes_B).sample
                epsilon = as_epsilon(predicted, x, alpha_bar, prediction)
                if clip:
                    x = clip_predicted_x0(x, epsilon, alpha_bar, bounds)
                x = scheduler.step(epsilon, timestep, x).prev_sample

        yield x


def decoded_images(
    batches_BChw: Iterable[torch.Tensor], autoencoder: Autoencoder, device: torch.device
) -> Iterator[torch.Tensor]:
    """Yield the images `(b, 3, H, W)` of latents on the host, a few at a time, when they are asked for."""
    for batch_BChw in batches_BChw:
        for images_BCHW in autoencoder.decode(to_device(batch_BChw, device)):
            yield images_BCHW.cpu()


def first_images(batches_BCHW: Iterator[torch.Tensor], count: int) -> torch.Tensor:
    """Return the first so many images of batches, and ask for no batch behind them."""
    found: list[torch.Tensor] = []
    while sum(map(len, found)) < count:
        batch_BCHW = next(batches_BCHW, None)
        if batch_BCHW is None:
            break
        found.append(batch_BCHW)

    return torch.cat(found)[:count]
