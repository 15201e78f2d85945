"""Find the weights of a run or of a timm model, their digest, and what the run's record says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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


def read_run(folder: Path) -> Mapping[str, Any] | None:
    """Read the record of the run in a folder, None where there is no run."""
    path = folder / RUN
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def run_name(run: Mapping[str, Any]) -> str:
    """Return the name that a run has today by its record, the same for all seeds."""
    settings = run.get("pretrain", {}).get("synthetic", {})
    if not settings.get("scores"):  # it goes by no measure: no need of what takes seconds to import
        return str(run["name"])

    from ...train.run_record import recorded_name

    return recorded_name(run)
