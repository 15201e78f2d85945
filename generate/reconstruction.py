"""What an autoencoder makes of images: reconstructions, how near they come, and the spread of the latents.

Shape legend: B images, C colours, H height, W width.
"""

import math
from typing import Any

import torch
from diffusers import AutoencoderKL

from ..core import WorkError, exact_precision, to_device
from ..shards import ImageSource
from .pixels import to_model_range

COLUMNS = 8
"""Images in a row of a grid."""
SCALED_BY = 4096
"""Anchors whose latents the scaling factor is measured on."""
BATCH = 8
"""Images per pass."""
MOST_DECIBELS = 100.0


def reconstruct(net: AutoencoderKL, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the images `(B, C, H, W)` in [-1, 1] that the means of images' latents stand for, on the CPU."""
    device = next(net.parameters()).device
    found = []
    for part in images_BCHW.split(BATCH):
        with torch.inference_mode(), exact_precision():
            encoded: Any = net.encode(to_device(part, device))
            decoded: Any = net.decode(encoded.latent_dist.mode())
            found.append(decoded.sample.clamp(-1, 1).cpu())

    return torch.cat(found)


def psnr(images_BCHW: torch.Tensor, others_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratios `(B,)` in dB, 10·log10(1 / MSE) with images in [0, 1], at most 100.

    Args:
        images_BCHW, others_BCHW: in [-1, 1].
    """
    halved_BCHW = (images_BCHW - others_BCHW) / 2
    errors_B = halved_BCHW.square().mean(dim=(1, 2, 3))
    return (-10 * errors_B.log10()).clamp(max=MOST_DECIBELS)


def reconstruction_grid(images_BCHW: torch.Tensor, found_BCHW: torch.Tensor) -> torch.Tensor:
    """Return rows of originals, each above the row of their reconstructions, as images one after another."""
    rows = []
    for originals, reconstructions in zip(
        images_BCHW.split(COLUMNS), found_BCHW.split(COLUMNS), strict=True
    ):
        blank = originals.new_ones(COLUMNS - len(originals), *originals.shape[1:])
        rows += [originals, blank, reconstructions, blank]

    return torch.cat(rows)


def scaling_factor(net: AutoencoderKL, anchors: ImageSource) -> float:
    """Return what gives the latents unit variance: 1 / σ of their means, over anchors spread over all.

    As Rombach et al. (2022, appendix G): one σ for all channels, around the mean over everything.

    Raises:
        WorkError: the latents are all alike.
    """
    device = next(net.parameters()).device
    places = anchors.spread(SCALED_BY)
    count = 0
    total = 0.0
    squares = 0.0
    for first in range(0, len(places), BATCH):
        images_BCHW = read_images(anchors, places[first : first + BATCH])
        with torch.inference_mode(), exact_precision():
            encoded: Any = net.encode(to_device(images_BCHW, device))

        means = encoded.latent_dist.mode().cpu().double()
        count += means.numel()
        total += means.sum().item()
        squares += means.square().sum().item()

    mean = total / count
    deviation = math.sqrt(max(0.0, squares / count - mean**2))
    if deviation == 0:
        raise WorkError(
            "the latents of all anchors are alike, so no scaling factor brings them to unit variance; "
            "lower autoencoder.kl_weight, into another --out"
        )
    return 1 / deviation


def read_images(anchors: ImageSource, places: list[int]) -> torch.Tensor:
    """Return anchors `(B, C, H, W)` in [-1, 1]."""
    return torch.cat([to_model_range(anchors[place].image[None]) for place in places])
