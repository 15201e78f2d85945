"""diffusers' schedulers with everything that shapes the images set explicitly."""

from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler

from .config import SamplerConfig


def make_scheduler(config: SamplerConfig, noise_schedule: dict[str, Any]) -> Any:
    """A fresh scheduler, its timesteps set. A solver holds state: one per candidate.

    A scheduler made by `from_config` from a hub DDPM would clip x0 and space its steps otherwise than the paper does.
    """
    explicit = dict(noise_schedule, timestep_spacing="trailing")
    if config.scheduler == "ddim":
        scheduler: Any = DDIMScheduler(**explicit, clip_sample=False)
    elif config.scheduler == "unipc":
        scheduler = UniPCMultistepScheduler(**explicit, final_sigmas_type="zero")
    else:
        scheduler = DPMSolverMultistepScheduler(**explicit, algorithm_type="dpmsolver++", final_sigmas_type="zero")
    scheduler.set_timesteps(config.steps)
    return scheduler


def noise_to(x0: torch.Tensor, noise: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """`x_t = sqrt(ᾱ_t)·x_0 + sqrt(1-ᾱ_t)·ε` (DDPM, equation 4)."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise
