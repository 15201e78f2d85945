"""Load encoders: any timm or clsp backbone in eval mode, made fast for inference.

Shape legend: B batch, H height, W width, C channels, F features.
"""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional

from ...core import InputError, exact_precision, local_path
from ...train import embed, load_backbone
from ...train.backbone import as_channels_last
from ..config import Precision
from .checkpoint import backbone_folder, checkpoint_digest, is_unet_name

CPU_BATCH = 64
GPU_BATCH = 512
"""Images per pass: on a CPU a pass whose activations stay near the caches is the fastest."""


class Encoder:
    """Turns images into pooled features, in eval mode, without gradient; convolutions and batch norms are joined.

    Args:
        model: gives features for normalised images.
        config: its `mean`, `std` and `input_size`, as in timm's `pretrained_cfg`.
        precision: `no` (float32) or `bf16`, whatever the machine: a feature must not depend on where it was computed.

    >>> config = {"input_size": (3, 2, 2), "mean": (0, 0, 0), "std": (1, 1, 1)}
    >>> encoder = Encoder(nn.Flatten(), config)
    >>> encoder(np.full((5, 2, 2, 3), 255, np.uint8)).shape
    torch.Size([5, 12])
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], precision: Precision = "no"):
        self.device = compute_device()
        self.precision: Precision = precision
        self.size = int(config["input_size"][-1])
        self.batch = CPU_BATCH if self.device.type == "cpu" else GPU_BATCH

        # The model, on its device before it is traced: tracing keeps the device that it sees
        model = model.eval().to(self.device)
        self._model = as_channels_last(_joined(model))

        # Normalisation
        mean_C = torch.tensor(config["mean"], device=self.device)
        std_C = torch.tensor(config["std"], device=self.device)
        self._mean = mean_C[:, None, None]
        self._std = std_C[:, None, None]

    @torch.inference_mode()
    def __call__(self, images_BHWC: np.ndarray | torch.Tensor, flips: bool = False) -> torch.Tensor:
        """Return features `(B, F)` float32 on the CPU of uint8 images, which are resized to the encoder's size.

        Args:
            flips: of their mirror images instead.
        """
        # Resize
        images = torch.as_tensor(images_BHWC).to(self.device).permute(0, 3, 1, 2).float() / 255
        if images.shape[-2:] != (self.size, self.size):
            images = functional.interpolate(
                images, (self.size, self.size), mode="bicubic", antialias=True
            ).clamp(0, 1)

        # Normalise, mirror
        batch = (images - self._mean) / self._std
        if flips:
            batch = batch.flip(-1)

        # Embed
        batch = batch.contiguous(memory_format=torch.channels_last)
        casting = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")
        with exact_precision(), casting:
            return embed(self._model, batch).cpu()


def load_encoder(name: str | Path, precision: Precision = "no") -> Encoder:
    """Load the encoder in a folder (a run of `clsp pretrain` or a timm model), or timm's pretrained model of that name.

    `unet:DIR` is a diffusion U-Net's features, see `evaluate/features/unet_encoder.py`.

    Raises:
        InputError: there is none, or its weights cannot be had.
    """
    if is_unet_name(str(name)):
        from .unet_encoder import load_unet_encoder, parse_unet_name

        return load_unet_encoder(parse_unet_name(str(name)), precision)

    model, config = _load_timm_model(str(name))
    return Encoder(model, config, precision)


def load_stages(name: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the model that `load_encoder` would, to give a list of feature maps, one per stage, instead of one vector.

    Returns:
        The model, in eval mode, and its `pretrained_cfg` (`mean`, `std`, `input_size`).

    Raises:
        InputError: there is none, its weights cannot be had, or it has no stages.
    """
    if is_unet_name(str(name)):
        raise InputError(f"{name}: expected a timm model or the folder of one, found a U-Net")
    return _load_timm_model(str(name), features_only=True)


def _load_timm_model(name: str, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Return the backbone in a folder, or timm's of that name, with its `pretrained_cfg`."""
    name = local_path(name)

    # A folder
    if Path(name).exists():
        return load_backbone(backbone_folder(Path(name)), **options)

    # A name of timm's, or of a hub that timm knows (`hf-hub:…`)
    is_path = name.startswith(("/", ".", "~"))
    is_known = ":" in name or timm.is_model(name)
    if is_path or not is_known:
        raise InputError(
            f"{name}: no folder of a model, and timm has no model of that name; see timm.list_pretrained()"
        )

    try:
        model: Any = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except (OSError, RuntimeError, ValueError) as error:
        # No weights for it, no network, or another architecture
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{name}: timm cannot load its pretrained weights ({reason}); give a local folder"
        ) from error

    return model.eval(), model.pretrained_cfg


def encoder_digest(name: str | Path) -> str:
    """Return the SHA-256 of the weights in a folder; the name of one of timm's own models, which name their weights."""
    if is_unet_name(str(name)):
        from .unet_encoder import parse_unet_name, unet_digest

        return unet_digest(parse_unet_name(str(name)))

    folder = Path(local_path(str(name)))
    return checkpoint_digest(folder) if folder.exists() else str(name)


def encoder_title(name: str | Path) -> str:
    """Return an encoder's name as it stands in what is published: of a folder without those that it lies in.

    >>> encoder_title("/usr/lib"), encoder_title("resnet18.a1_in1k")
    ('lib', 'resnet18.a1_in1k')
    """
    if is_unet_name(str(name)):
        from .unet_encoder import parse_unet_name

        unet = parse_unet_name(str(name))
        return replace(unet, path=_title_of_path(unet.path)).text

    return _title_of_path(str(name))


def _title_of_path(name: str) -> str:
    path = local_path(name)
    return Path(path).resolve().name if Path(path).exists() else name


def compute_device() -> torch.device:
    """Return the device that evaluations compute on: the GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _joined(model: nn.Module) -> nn.Module:
    """Fold every batch norm into the convolution before it; return the model as it is where it cannot be traced."""
    from torch.fx.experimental.optimization import fuse

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return fuse(model)
        except Exception:  # tracing raises whatever the model's Python does with a symbolic value
            return model
