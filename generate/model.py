"""The diffusion model: building one, loading one and checking that it fits the anchors, its digest."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DModel

from ..core import InputError, local_path
from .condition import Condition, read_condition
from .config import DiffusionConfig
from .interpolation import check_unet_config
from .latent import ADVICE, LatentModelConfig, LatentSpace, read_latent_model
from .pretrained import (
    find_config,
    load_network,
    looks_local,
    network_digest,
    origin_of,
    structure_of,
)

NOISE_SCHEDULE = (
    "num_train_timesteps",
    "beta_schedule",
    "beta_start",
    "beta_end",
    "prediction_type",
)


PREDICTIONS = ("epsilon", "v_prediction", "sample")
"""What a U-Net may predict: the noise, the velocity or the image; see `as_epsilon`."""


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
    latent: LatentSpace | None = None
    """The space of latents that its U-Net works in; None for a model of pixels."""

    @property
    def size(self) -> int:
        """Return the side length of its images in pixels."""
        factor = self.latent.autoencoder.config.factor if self.latent else 1
        return factor * _side(self.unet.config)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """Return the shape (C, h, w) of what its U-Net works on: an image, or a latent."""
        side = _side(self.unet.config)
        return (self.unet.config["in_channels"], side, side)


def load_diffusion(path: str, size: int | None = None, latent: str = "") -> DiffusionModel:
    """Load a model in diffusers' format from a folder or the hub, for `size` x `size` RGB images.

    Args:
        size: of the anchors in pixels; None takes a model for square images of any size.
        latent: the folder or hub id of the autoencoder of a latent model; empty: the one that lies beside its U-Net,
            as in diffusers' LDMPipeline, or that it was trained with.

    Raises:
        InputError: nothing there, or a model of another kind, image size, channel count or prediction target; found
            from its configuration, before any weights are loaded.
    """
    # The configuration of the U-Net
    path = local_path(path)
    subfolder, config = _unet_config(path)
    check_unet_config(config, path)
    latent_config = read_latent_model(path, config, latent)
    _check_size(path, config, size, latent_config)

    # The noise schedule
    scheduler = _scheduler_config(path)
    schedule = _noise_schedule(scheduler, path)

    # Its classes
    embeddings = config.get("num_class_embeds")
    condition = read_condition(path, embeddings) if embeddings else None

    # The weights
    unet = load_network(UNet2DModel, path, subfolder, "diffusion model")
    space = latent_config.load(path) if latent_config else None

    clip_range = float(scheduler.get("clip_sample_range") or 1.0)
    digest = _digest(config, schedule, unet, condition, space)
    return DiffusionModel(unet, schedule, origin_of(path), digest, clip_range, condition, space)


def check_clip(model: DiffusionModel, clip: bool) -> None:
    """Refuse to clip x0 where nobody knows to what (`sampler.clip`).

    Raises:
        InputError: a latent model of others, which does not say what values its latents have.
    """
    if clip and model.latent and model.latent.ranges is None:
        raise InputError(
            f"sampler.clip is true, and the diffusion model {model.origin} does not say what range its latents have; "
            "set sampler.clip=false, or use a model of clsp diffusion train"
        )


def image_size(path: str) -> int:
    """Return the side length in pixels of a model's images, from its configuration alone.

    Raises:
        InputError: there is no model.
    """
    path = local_path(path)
    config = _unet_config(path)[1]
    _check_names_size(path, config)
    latent_config = read_latent_model(path, config)
    return _side(config) * (latent_config.autoencoder.factor if latent_config else 1)


def _check_names_size(path: str, config: Mapping[str, Any]) -> None:
    """Raise InputError for a U-Net of which nobody says how large its images or latents are."""
    if config.get("sample_size") is None:
        raise InputError(
            f"diffusion model {path} does not say for which size it was trained; "
            "write it as sample_size into its config.json"
        )


def _side(config: Mapping[str, Any]) -> int:
    """Return the side length that the configuration of a U-Net for square images or latents names."""
    size = config.get("sample_size")
    return size[0] if isinstance(size, list | tuple) else size  # type: ignore[return-value]


def _check_size(
    path: str, config: Mapping[str, Any], size: int | None, latent: LatentModelConfig | None
) -> None:
    """Refuse a model of other images than the anchors.

    Raises:
        InputError: it is for another size, no square, or not for RGB; or it does not say its size.
    """
    _check_names_size(path, config)
    found_size = config.get("sample_size")
    own_side = _side(config)
    is_square = found_size in (own_side, [own_side, own_side])

    if latent is None:
        channels = (config.get("in_channels", 3), config.get("out_channels", 3))
        if channels != (3, 3):
            raise InputError(
                f"diffusion model {path} has {channels} channels in and out, the anchors are RGB (3, 3); "
                f"if it makes latents, {ADVICE}"
            )
        if not is_square or size not in (None, own_side):
            raise InputError(
                f"diffusion model {path} is for images of {found_size} pixels, the anchors have {size}; "
                "set anchors.size or use another model"
            )
        return

    factor = latent.autoencoder.factor
    if size is not None:
        latent.autoencoder.latent_size(size)
    if not is_square or size not in (None, own_side * factor):
        raise InputError(
            f"diffusion model {path} is for latents of {found_size}, which the autoencoder {latent.autoencoder.path} "
            f"makes of images {factor} times as large, the anchors have {size} pixels; "
            "set anchors.size or use another model"
        )


def build_unet(
    config: DiffusionConfig, size: int, classes: int = 0, channels: int = 3
) -> UNet2DModel:
    """Return a U-Net of the DDPM design for `size` x `size` RGB images, or latents of other channels.

    Args:
        classes: of a conditional U-Net, whose class embedding has one row more, for «no class»; 0: unconditional.
        channels: in and out.

    Raises:
        InputError: the side cannot be halved as often as the levels want.
    """
    what = "latents" if config.latent else "anchors"
    check_halvings(size, len(config.channels), "diffusion.channels", what)
    return UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
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


def check_halvings(size: int, levels: int, key: str, what: str = "anchors") -> None:
    """Raise InputError if images of `size` pixels cannot be halved between so many levels, which `key` sets.

    Args:
        what: is halved: `anchors`, or their `latents`.
    """
    halvings = levels - 1
    if size % 2**halvings:
        raise InputError(
            f"{what} of {size} pixels cannot be halved {halvings} times as {key} wants; "
            "use fewer levels or another anchors.size"
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
    if looks_local(path) and not Path(path).exists():
        raise InputError(
            f"diffusion model {path} does not exist; train one with: clsp diffusion train --out {path}"
        )

    # A folder or the hub
    try:
        return find_config(UNet2DModel, path, ("unet", None))
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"diffusion model {path} was found neither as a folder nor on the hub ({reason})"
        ) from error


def _scheduler_config(path: str) -> dict[str, Any]:
    try:
        return find_config(DDPMScheduler, path, ("scheduler", None))[1]
    except OSError as error:
        raise InputError(
            f"diffusion model {path} has no scheduler_config.json; its noise schedule must not be guessed"
        ) from error


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
    latent: LatentSpace | None,
) -> str:
    """Return the SHA-256 over the configuration, the noise schedule and every weight: the same for any file format.

    With pseudo-classes it is also over them, and in latents over the autoencoder and their range.
    """
    facts: dict[str, Any] = {"unet": structure_of(config), "schedule": schedule}
    if condition and condition.clusters:
        facts["clusters"] = {"digest": condition.clusters.digest}
    if latent:
        facts["latent"] = latent.facts

    return network_digest(facts, unet)
