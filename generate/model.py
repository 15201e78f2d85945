"""The diffusion model: building one, loading one and checking that it fits the anchors, its digest."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from ..core import InputError, canonical_json, local_path
from .condition import Condition, read_condition
from .config import DiffusionConfig
from .interpolation import check_unet_config

NOISE_SCHEDULE = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
)


PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a U-Net may predict: the noise, the velocity or the image; see `as_epsilon`."""
LATENT_PARTS = ("vqvae", "vae")
"""Parts of a pipeline that turn images into latents."""


@dataclass(frozen=True)
class DiffusionModel:
    """Holds a U-Net, its noise schedule, where it came from and the digest of all of it.

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
    condition: Condition | None = None
    """What its classes are; None for an unconditional model."""

    @property
    def size(self) -> int:
        """Return the side length of its images in pixels."""
        return _side(self.unet.config)


def load_diffusion(path: str, size: int | None = None) -> DiffusionModel:
    """Load a model in diffusers' format from a folder or the hub, for `size` x `size` RGB images.

    Args:
        size: of the anchors in pixels; None takes a model for square images of any size.

    Raises:
        InputError: nothing there, or a model of another kind, image size, channel count or prediction target; found
            from its configuration, before any weights are loaded.
    """
    # The configuration of the U-Net
    path = local_path(path)
    _refuse_latent(path)
    subfolder, config = _unet_config(path)
    check_unet_config(config, path)
    found_size = config.get("sample_size")
    own_size = _side(config)
    if found_size not in (own_size, [own_size, own_size]) or size not in (None, own_size):
        raise InputError(
            f"diffusion model {path} is for images of {found_size} pixels, the anchors have {size}; "
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

    # Its classes
    embeddings = config.get("num_class_embeds")
    condition = read_condition(path, embeddings) if embeddings else None

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

    digest = _digest(config, schedule, unet, condition)
    return DiffusionModel(unet, schedule, origin, digest, clip_range, condition)


def image_size(path: str) -> int:
    """Return the side length in pixels of a model's images, from its configuration alone.

    Raises:
        InputError: there is no model.
    """
    return _side(_unet_config(local_path(path))[1])


def _side(config: Mapping[str, Any]) -> int:
    """Return the side length that the configuration of a U-Net for square images names."""
    size = config.get("sample_size")
    return size[0] if isinstance(size, list | tuple) else size  # type: ignore[return-value]


def build_unet(config: DiffusionConfig, size: int, classes: int = 0) -> UNet2DModel:
    """Return a U-Net of the DDPM design for `size` x `size` RGB images.

    Args:
        classes: of a conditional U-Net, whose class embedding has one row more, for «no class»; 0: unconditional.

    Raises:
        InputError: the side cannot be halved as often as the levels want.
    """
    check_halvings(size, len(config.channels), "diffusion.channels")
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
        num_class_embeds=classes + 1 if classes else None,
    )


def check_halvings(size: int, levels: int, key: str) -> None:
    """Raise InputError if images of `size` pixels cannot be halved between so many levels, which `key` sets."""
    halvings = levels - 1
    if size % 2**halvings:
        raise InputError(
            f"anchors of {size} pixels cannot be halved {halvings} times as {key} wants; "
            "use fewer levels or another anchors.size"
        )


def _refuse_latent(path: str) -> None:
    """Raise InputError for a pipeline whose U-Net works on latents: it would be taken for one of small images."""
    try:
        pipeline: Any = DDPMPipeline.load_config(path)
    except OSError:
        pipeline = {}  # a U-Net and a scheduler without a pipeline around them

    name = pipeline.get("_class_name", "")
    parts = [part for part in LATENT_PARTS if part in pipeline or (Path(path) / part).is_dir()]
    if parts or name.startswith(("LDM", "StableDiffusion")):
        found = f"it has a {parts[0]}" if parts else f"it is of {name}"
        raise InputError(
            f"diffusion model {path} makes latents, not pixels ({found}); expected a model of RGB images, DDPMPipeline"
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
    if schedule["prediction_type"] not in PREDICTIONS:
        raise InputError(
            f"diffusion model {path} predicts {schedule['prediction_type']}, expected {', '.join(PREDICTIONS)}"
        )
    if config.get("rescale_betas_zero_snr"):
        raise InputError(
            f"diffusion model {path} has rescale_betas_zero_snr, whose last timestep is noise alone; "
            "expected a plain noise schedule"
        )
    if config.get("trained_betas") is not None:
        raise InputError(
            f"diffusion model {path} has a list of betas of its own, expected a named beta_schedule"
        )

    return schedule


def _digest(
    config: dict[str, Any],
    schedule: dict[str, Any],
    unet: torch.nn.Module,
    condition: Condition | None,
) -> str:
    """Return the SHA-256 over the configuration, the noise schedule and every weight: the same for any file format.

    With pseudo-classes it is also over them.
    """
    structure = {key: value for key, value in config.items() if not key.startswith("_")}
    facts = {"unet": structure, "schedule": schedule}
    if condition and condition.clusters:
        facts["clusters"] = {"digest": condition.clusters.digest}

    total = hashlib.sha256(canonical_json(facts))

    for name, tensor in sorted(unet.state_dict().items()):
        shape = tuple(tensor.shape)
        heading = f"{name} {tensor.dtype} {shape}\n"
        content = tensor.detach().cpu().contiguous().view(torch.uint8)
        total.update(heading.encode())
        total.update(content.numpy().tobytes())

    return total.hexdigest()
