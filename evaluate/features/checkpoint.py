"""Find the weights of a run or of a timm model, and their digest."""

from pathlib import Path

from ...core import InputError, sha256_file

RUN = "run.json"
UNET = "unet:"
"""Begins the name of a diffusion U-Net's features; see `evaluate/features/unet_encoder.py`."""


def is_unet_name(name: str) -> bool:
    """Return True if an encoder's name is one of a diffusion U-Net."""
    return name.startswith(UNET)


def backbone_folder(checkpoint: Path) -> Path:
    """Return the backbone of a run of `clsp pretrain`, or the folder itself if it is a timm model.

    Raises:
        InputError: neither is there.
    """
    for folder in (checkpoint / "backbone", checkpoint):
        if (folder / "config.json").exists() and (folder / "model.safetensors").exists():
            return folder

    if (checkpoint / RUN).exists():
        raise InputError(f"{checkpoint} is not finished; run clsp pretrain again to complete it")

    raise InputError(
        f"{checkpoint} holds no checkpoint; give a folder of clsp pretrain or of a timm model"
    )


def checkpoint_digest(checkpoint: Path) -> str:
    """Return the SHA-256 of the weights of a run's backbone or of a timm model's folder."""
    return sha256_file(backbone_folder(checkpoint) / "model.safetensors")
