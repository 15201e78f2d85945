"""Tiny autoencoders and latent models with random weights, saved by diffusers itself, for the tests of latents."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)

SIZE = 16
"""Pixels of an image, whose latents are half as wide."""
LEVELS: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
}
SCALING = 4.0


def save_autoencoder(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Save an AutoencoderKL that halves the side of images."""
    torch.manual_seed(seed)
    settings = {**LEVELS, "latent_channels": 4, "scaling_factor": SCALING, **changes}
    AutoencoderKL(**settings).save_pretrained(folder)
    return folder


def vq_model(channels: int = 3) -> VQModel:
    torch.manual_seed(0)
    settings = {**LEVELS, "latent_channels": channels, "num_vq_embeddings": 16}
    return VQModel(**settings, scaling_factor=SCALING)


def latent_unet(channels: int = 4, size: int = SIZE // 2) -> UNet2DModel:
    torch.manual_seed(1)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )


def save_unet(folder: Path, channels: int = 4, size: int = SIZE // 2) -> Path:
    """Save a pipeline of a latent U-Net without a word about its autoencoder."""
    DDPMPipeline(latent_unet(channels, size), DDPMScheduler()).save_pretrained(folder)
    return folder


def save_ldm(folder: Path, scheduler: Any = None) -> Path:
    """Save an LDMPipeline in the form of `CompVis/ldm-celebahq-256`."""
    scheduler = scheduler or DDIMScheduler()
    LDMPipeline(vq_model(), latent_unet(3), scheduler).save_pretrained(folder)
    return folder


def in_model_range(images_BHWC: np.ndarray) -> torch.Tensor:
    """Return images as `(B, 3, H, W)` in [-1, 1], in float64 first."""
    x = torch.from_numpy(images_BHWC.astype(np.float64) / 127.5 - 1)
    return x.permute(0, 3, 1, 2).float()


def as_pixels(x_BCHW: torch.Tensor) -> np.ndarray:
    """Return levels `(B, H, W, 3)` of images in [-1, 1]."""
    levels = np.rint((x_BCHW.double().clamp(-1, 1).numpy() + 1) * 127.5)
    return levels.transpose(0, 2, 3, 1)
