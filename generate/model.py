"""The diffusion model: building one, loading one and checking that it fits the anchors, its digest."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ..core import InputError, canonical_json, local_path
from .config import DiffusionConfig
from .interpolation import check_unet_config

NOISE_SCHEDULE = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
)


@dataclass(frozen=True)
class DiffusionModel:
    """Holds a U-Net that predicts noise, its noise schedule, where it came from and the digest of all of it.

    >>> import tempfile
    >>> from clsp.generate.example import make_example_model
    >>> from diffusers import DDPMPipeline, DDPMScheduler
    >>> made = make_example_model(size=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     DDPMPipeline(made.unet, DDPMScheduler()).save_pretrained(folder)
    ...     loaded = load_diffusion(folder, size=8)
    >>> loaded.noise_schedule["num_train_timesteps"], loaded.digest == made.digest
    (1000, True)
    """

    unet: UNet2DModel
    noise_schedule: dict[str, Any]
    origin: str
    digest: str
    clip_range: float = 1.0
    """The bound of its images' values that its scheduler's configuration names."""


def load_diffusion(path: str, size: int) -> DiffusionModel:
    """Load a model in diffusers' format from a folder or the hub, for `size` x `size` RGB images.

    Raises:
        InputError: nothing there, or a model of another kind, image size, channel count or prediction target; found
            from its configuration, before any weights are loaded.
    """
    # The configuration of the U-Net
    path = local_path(path)
    subfolder, config = _unet_config(path)
    check_unet_config(config, path)
    if config.get("sample_size") not in (size, [size, size]):
        raise InputError(
            f"diffusion model {path} is for images of {config.get('sample_size')} pixels, the anchors have {size}; "
            "set anchors.size or use another model"
        )

    channels = (config.get("in_channels", 3), config.get("out_channels", 3))
    if channels != (3, 3):
        raise InputError(
            f"diffusion model {path} has {channels} channels in and out, the anchors are RGB (3, 3)"
        )

    # The noise schedule
    scheduler = _scheduler_config(path)
    schedule = _noise_schedule(scheduler, path)

    # The weights
    loaded: Any = UNet2DModel.from_pretrained(
        path, subfolder=subfolder, low_cpu_mem_usage=False, output_loading_info=True
    )
    unet, loading = loaded
    faults = sorted(
        f"{kind}: {', '.join(map(str, keys))}" for kind, keys in loading.items() if keys
    )
    if faults:  # diffusers would go on with random weights in their place
        raise InputError(
            f"diffusion model {path}: its weights do not fit its config ({'; '.join(faults)[:200]})"
        )

    unet = unet.eval().requires_grad_(False)

    # Where it came from
    origin = Path(path).resolve().name if Path(path).exists() else path
    clip_range = float(scheduler.get("clip_sample_range") or 1.0)

    return DiffusionModel(unet, schedule, origin, _digest(config, schedule, unet), clip_range)


def build_unet(config: DiffusionConfig, size: int) -> UNet2DModel:
    """Return a U-Net of the DDPM design for `size` x `size` RGB images.

    Raises:
        InputError: the side cannot be halved as often as the levels want.
    """
    halvings = len(config.channels) - 1
    if size % 2**halvings:
        raise InputError(
            f"anchors of {size} pixels cannot be halved {halvings} times as diffusion.channels wants; "
            "use fewer levels or another anchors.size"
        )

    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        layers_per_block=config.blocks,
        block_out_channels=config.channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
        up_block_types=tuple(
            "AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)
        ),
        norm_num_groups=config.norm_groups,
        dropout=config.dropout,
        attention_head_dim=None,  # one head, as in DDPM
    )


def _unet_config(path: str) -> tuple[str | None, dict[str, Any]]:
    """Return the U-Net's configuration and the subfolder it lies in: `unet`, or the root in the oldest hub models."""
    # What is meant as a folder is not looked for on the hub
    if Path(path).is_dir() and not any(
        (Path(path) / name).exists() for name in ("unet/config.json", "config.json")
    ):
        raise InputError(
            f"diffusion model {path}: no unet/config.json there; train one with: clsp diffusion train"
        )
    if path.startswith((".", "/", "~")) and not Path(path).exists():
        raise InputError(
            f"diffusion model {path} does not exist; train one with: clsp diffusion train --out {path}"
        )

    # A folder or the hub
    for subfolder in ("unet", None):
        try:
            config: Any = UNet2DModel.load_config(path, subfolder=subfolder)
            return subfolder, dict(config)
        except OSError as error:
            last = error

    reason = str(last).strip().splitlines()[0]
    raise InputError(
        f"diffusion model {path} was found neither as a folder nor on the hub ({reason})"
    ) from last


def _scheduler_config(path: str) -> dict[str, Any]:
    for subfolder in ("scheduler", None):
        try:
            config: Any = DDPMScheduler.load_config(path, subfolder=subfolder)
            return dict(config)
        except OSError:
            continue
    raise InputError(
        f"diffusion model {path} has no scheduler_config.json; its noise schedule must not be guessed"
    )


def _noise_schedule(config: dict[str, Any], path: str) -> dict[str, Any]:
    schedule = {key: config.get(key, DDPMScheduler().config[key]) for key in NOISE_SCHEDULE}
    if schedule["prediction_type"] != "epsilon":
        raise InputError(
            f"diffusion model {path} predicts {schedule['prediction_type']}, expected epsilon"
        )
    if config.get("trained_betas") is not None:
        raise InputError(
            f"diffusion model {path} has a list of betas of its own, expected a named beta_schedule"
        )

    return schedule


def _digest(config: dict[str, Any], schedule: dict[str, Any], unet: torch.nn.Module) -> str:
    """Return the SHA-256 over the configuration, the noise schedule and every weight: the same for any file format."""
    structure = {key: value for key, value in config.items() if not key.startswith("_")}
    facts = {"unet": structure, "schedule": schedule}
    total = hashlib.sha256(canonical_json(facts))

    for name, tensor in sorted(unet.state_dict().items()):
        shape = tuple(tensor.shape)
        heading = f"{name} {tensor.dtype} {shape}\n"
        content = tensor.detach().cpu().contiguous().view(torch.uint8)
        total.update(heading.encode())
        total.update(content.numpy().tobytes())

    return total.hexdigest()
