"""Make a small diffusion model or autoencoder without training it, to try things out with."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMPipeline, DDPMScheduler

from .autoencoder import Autoencoder, load_autoencoder, read_autoencoder
from .config import DiffusionConfig
from .model import DiffusionModel, build_unet, load_diffusion


def make_example_model(size: int = 8) -> DiffusionModel:
    """Save and load a model for `size` x `size` images with random weights, the same ones always.

    >>> make_example_model().digest == make_example_model().digest
    True
    """
    config = DiffusionConfig(channels=(32, 32), attention=(False, False), blocks=1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = build_unet(config, size)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example"
        DDPMPipeline(unet, DDPMScheduler()).save_pretrained(path)
        return load_diffusion(str(path), size)


def make_example_autoencoder() -> Autoencoder:
    """Save and load an autoencoder that halves the side of images, with random weights, the same ones always.

    >>> make_example_autoencoder().digest == make_example_autoencoder().digest
    True
    """
    levels: Any = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = AutoencoderKL(**levels, norm_num_groups=4)

    with tempfile.TemporaryDirectory() as folder:
        net.save_pretrained(folder)
        return load_autoencoder(read_autoencoder(folder))
