"""Backbones: any timm model by name, their export in timm's form and its strict loading."""

import json
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from torch import nn

from ..core import InputError
from .cifar_resnet import default_cfgs
from .config import PretrainConfig


def architecture(config: PretrainConfig) -> str:
    """Return the name under which timm knows the recipe's backbone.

    Raises:
        InputError: timm does not know it, or the stem does not go with it.
    """
    if config.stem == "default":
        if not timm.is_model(config.backbone):
            raise InputError(
                f"pretrain.backbone: timm has no model {config.backbone!r}; see timm.list_models()"
            )
        return config.backbone

    name = f"clsp_{config.backbone}_cifar"
    if name not in default_cfgs:
        known = ", ".join(key.split("_")[1] for key in default_cfgs)
        raise InputError(
            f"pretrain.stem = cifar goes with {known}, found {config.backbone}; set pretrain.stem=default"
        )

    return name


def build_backbone(config: PretrainConfig) -> nn.Module:
    """Return the recipe's backbone without a classifier, randomly initialised: images to pooled features `(B, F)`."""
    name = architecture(config)
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **config.backbone_kwargs)
    except TypeError as error:
        raise InputError(
            f"pretrain.backbone_kwargs do not fit {config.backbone}: {error}"
        ) from error


def save_backbone(model: nn.Module, config: PretrainConfig, size: int, folder: Path) -> None:
    """Write `model.safetensors` and `config.json` in timm's form, with the normalisation and image size used."""
    data = {"input_size": (3, size, size), "mean": config.mean, "std": config.std}
    arguments = dict(config.backbone_kwargs)
    timm.models.save_for_hf(
        model, str(folder), model_args=arguments, data_config=data, safe_serialization=True
    )


def load_backbone(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a saved backbone, strictly; returns it in eval mode, and its `pretrained_cfg` (`mean`, `std`, `input_size`).

    Raises:
        InputError: the folder holds no backbone in timm's form, or the weights do not fit it.
    """
    path = folder / "config.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no backbone (no config.json); give a run that clsp pretrain has finished"
        )

    try:
        config = json.loads(path.read_text())["pretrained_cfg"]
        absent = [name for name in ("mean", "std", "input_size") if name not in config]
        if absent:
            raise ValueError(f"its pretrained_cfg lacks {', '.join(absent)}")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{folder} is no loadable timm backbone: {reason}") from error

    return model.eval().requires_grad_(False), config


def embed(model: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the pooled features `(B, F)` float32 of normalised images."""
    return model(images_BCHW).flatten(1).float()
