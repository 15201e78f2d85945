"""Make a small diffusion model without training it, to try things out with."""

import tempfile
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler

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
