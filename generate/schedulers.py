"""diffusers' schedulers with everything that shapes the images set explicitly."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch.overrides import TorchFunctionMode

from ..core import InputError, to_device
from .config import SamplerConfig


class Bounds(NamedTuple):
    """Holds the lowest and the highest value of an x0: for all, or `(1, C, 1, 1)` for every channel."""

    lowest: float | torch.Tensor
    highest: float | torch.Tensor


PIXEL_BOUNDS = Bounds(-1.0, 1.0)


def make_scheduler(
    config: SamplerConfig, noise_schedule: dict[str, Any], device: torch.device | None = None
) -> Any:
    """Make a fresh scheduler, its timesteps set. A solver holds state: one per candidate.

    A scheduler made by `from_config` from a hub DDPM would clip x0 and space its steps otherwise than the paper does.
    Clipping is not left to the schedulers at all, see `clip_predicted_x0`, nor is what the U-Net predicts, see
    `as_epsilon`.

    Args:
        device: where the samples are; UniPC computes its coefficients there, and would copy a scalar at a time.
    """
    explicit = dict(noise_schedule, timestep_spacing="trailing", prediction_type="epsilon")
    if config.scheduler == "ddim":
        scheduler: Any = DDIMScheduler(**explicit, clip_sample=False)
    elif config.scheduler == "unipc":
        # The corrector goes back to the sample before its clipping, and lets 4 % of the pixels out of range again.
        uncorrected = list(range(config.steps)) if config.clip else []
        scheduler = UniPCMultistepScheduler(
            **explicit, final_sigmas_type="zero", disable_corrector=uncorrected
        )
    else:
        scheduler = DPMSolverMultistepScheduler(
            **explicit, algorithm_type="dpmsolver++", final_sigmas_type="zero"
        )

    scheduler.set_timesteps(config.steps)
    if device is not None and device.type == "cuda" and config.scheduler == "unipc":
        scheduler.sigmas = to_device(scheduler.sigmas, device)

    return scheduler


class _UncheckedSolving(TorchFunctionMode):
    """Solves linear systems without reading back from the device whether they were singular."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch.linalg.solve:
            return torch.linalg.solve_ex(*args, **(kwargs or {})).result
        return func(*args, **(kwargs or {}))


def unchecked_solving(device: torch.device) -> AbstractContextManager[Any]:
    """Let a GPU solve the small regular systems of UniPC's corrector without making the host wait."""
    return _UncheckedSolving() if device.type == "cuda" else nullcontext()


def mixing_timesteps(config: SamplerConfig, noise_schedule: dict[str, Any]) -> list[int]:
    """Return the timesteps at which the anchor's features take part, in the order of sampling."""
    timesteps = make_scheduler(config, noise_schedule).timesteps.tolist()
    if config.weight == 1:
        return []
    if config.window is None:
        return timesteps

    lowest, highest = config.window
    return [timestep for timestep in timesteps if lowest <= timestep <= highest]


def check_window(config: SamplerConfig, noise_schedule: dict[str, Any]) -> None:
    """Refuse a window between the timesteps: the anchors would have no part in their positives.

    Raises:
        InputError: no timestep of the sampling lies in it.
    """
    if config.window is None or config.weight == 1 or mixing_timesteps(config, noise_schedule):
        return

    timesteps = make_scheduler(config, noise_schedule).timesteps.tolist()
    raise InputError(
        f"sampler.window is {list(config.window)}, and none of the {len(timesteps)} timesteps {timesteps[-1]} … "
        f"{timesteps[0]} lies in it; widen it, or set sampler.weight=1 to leave the anchor out"
    )


def noise_to(x0: torch.Tensor, noise: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    """Return `x_t = sqrt(ᾱ_t)·x_0 + sqrt(1-ᾱ_t)·ε` (DDPM, equation 4)."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


def as_epsilon(
    predicted: torch.Tensor, x_t: torch.Tensor, alpha_bar: float, prediction: str
) -> torch.Tensor:
    """Return the noise ε that a U-Net's prediction for `x_t` stands for.

    With `x_t = sqrt(ᾱ)·x_0 + sqrt(1-ᾱ)·ε` and the velocity `v = sqrt(ᾱ)·ε - sqrt(1-ᾱ)·x_0` (Salimans & Ho, 2022,
    appendix D), that is `ε = sqrt(ᾱ)·v + sqrt(1-ᾱ)·x_t`, and `ε = (x_t - sqrt(ᾱ)·x_0) / sqrt(1-ᾱ)` of an image.

    Args:
        prediction: `epsilon`, `v_prediction` or `sample` (x_0), as diffusers calls them.
    """
    signal_share = alpha_bar**0.5
    noise_share = (1 - alpha_bar) ** 0.5

    if prediction == "v_prediction":
        return signal_share * predicted + noise_share * x_t
    if prediction == "sample":
        return (x_t - signal_share * predicted) / noise_share
    return predicted


def clip_predicted_x0(
    x_t: torch.Tensor, epsilon: torch.Tensor, alpha_bar: float, bounds: Bounds = PIXEL_BOUNDS
) -> torch.Tensor:
    """Return the sample from which ε predicts the same x0, clamped to [-1, 1] or other bounds.

    With it in the place of `x_t`, a step of any scheduler goes on from a prediction in the range of images; for DDIM
    that is diffusers' `clip_sample`. Their `thresholding` for solvers clamps x0 but takes ε to be what then is left of
    `x_t`, so what was clamped away comes back as noise: on digits 18 % of the pixels stayed coloured, here none.

    Args:
        x_t: the sample `(B, C, H, W)` at a timestep.
        epsilon: the noise predicted for it.
        alpha_bar: ᾱ of that timestep.
        bounds: of x0; latents have others than images.
    """
    noise_share = (1 - alpha_bar) ** 0.5
    x0 = (x_t - noise_share * epsilon) / alpha_bar**0.5

    clipped = torch.clamp(x0, bounds.lowest, bounds.highest)  # type: ignore[arg-type]

    return alpha_bar**0.5 * clipped + noise_share * epsilon
