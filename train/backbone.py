"""Backbones: any timm model by name, their export in timm's form and its strict loading."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.models._hub import save_config_for_hf
from torch import nn

from ..core import InputError, local_path, sha256_file, write_file
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
    """Return the recipe's backbone without a classifier, randomly initialised: images to pooled features `(B, F)`.

    Raises:
        InputError: timm does not know it, or cannot build it with these `backbone_kwargs`.
    """
    name = architecture(config)
    try:
        return timm.create_model(name, pretrained=False, num_classes=0, **config.backbone_kwargs)
    except Exception as error:  # every family checks its arguments in its own way, or not at all
        raise InputError(
            f"pretrain.backbone_kwargs do not fit {config.backbone}: {_reason(error)}"
        ) from error


def feature_width(model: nn.Module) -> int:
    """Return F of a timm model's pooled features `(B, F)`.

    `num_features` is the width before the head, and many heads have a layer more before the classifier.
    """
    return int(model.head_hidden_size)  # type: ignore[arg-type]


def check_backbone(config: PretrainConfig, size: int) -> None:
    """Build the recipe's backbone and send two blank images through it.

    Args:
        size: side of the images, in pixels.

    Raises:
        InputError: it cannot be built, does not take images of this size, or gives no vector per image.
    """
    model: Any = build_backbone(config)
    fault = _fault(model, config, size)
    if fault is None:
        return

    found = f"pretrain.backbone = {config.backbone} does not take images of {size} pixels ({fault})"
    if _takes_when_told(config, size):
        raise InputError(f"{found}; add --set pretrain.backbone_kwargs.img_size={size}")

    made_for = model.pretrained_cfg["input_size"][-1]
    raise InputError(
        f"{found}; it was made for {made_for}: use a set with a larger anchors.size, or another backbone"
    )


def _fault(model: nn.Module, config: PretrainConfig, size: int) -> str | None:
    """Return what goes wrong when a model sees images of a size and is described for export; None if nothing does."""
    expected = (2, feature_width(model))
    try:
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            features: Any = model.train()(torch.zeros(2, 3, size, size))
            _save_config(model, config, size, Path(folder) / "config.json")
    except OSError:  # the temporary folder's
        raise
    except Exception as error:  # a size that does not fit shows anywhere inside of a model
        return _reason(error)

    found = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
    return None if found == expected else f"gives {found} for two images, expected {expected}"


def _takes_when_told(config: PretrainConfig, size: int) -> bool:
    """Return True if the backbone takes images of this size once it is built for them."""
    kwargs = {**config.backbone_kwargs, "img_size": size}
    told = config.model_copy(update={"backbone_kwargs": kwargs})
    try:
        model = build_backbone(told)
    except InputError:
        return False
    return _fault(model, told, size) is None


def _reason(error: Exception) -> str:
    """Return the first line of what a library says."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def as_channels_last(model: nn.Module) -> nn.Module:
    """Lay out a model's images and kernels with their channels last, which convolutions are fastest with; return it.

    `Module.to` would fail at a tensor of five dimensions, such as the masks of windows in a traced Swin.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)

    return model


def save_backbone(model: nn.Module, config: PretrainConfig, size: int, folder: Path) -> None:
    """Write `model.safetensors` and `config.json` in timm's form, with the normalisation and image size used."""
    content = safetensors.torch.save(unshared(model.state_dict()))
    write_file(folder / "model.safetensors", content)
    _save_config(model, config, size, folder / "config.json")


def _save_config(model: nn.Module, config: PretrainConfig, size: int, path: Path) -> None:
    data = {"input_size": (3, size, size), "mean": config.mean, "std": config.std}
    save_config_for_hf(model, str(path), model_args=dict(config.backbone_kwargs), data_config=data)


def unshared(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors, contiguous, with copies of those that lie in another one's memory, as safetensors wants it.

    Models that use a layer at several places name its weights several times.
    """
    kept = {}
    places = set()
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        kept[name] = tensor.clone() if place in places and tensor.numel() else tensor
        places.add(place)

    return kept


def load_backbone(folder: Path, **options: Any) -> tuple[nn.Module, dict[str, Any]]:
    """Load a saved backbone, strictly; returns it in eval mode, and its `pretrained_cfg` (`mean`, `std`, `input_size`).

    Args:
        options: further arguments of `timm.create_model`.

    Raises:
        InputError: the folder holds no backbone in timm's form, or the weights do not fit it.
    """
    path = folder / "config.json"
    if not path.exists():
        raise InputError(
            f"{folder} holds no backbone (no config.json); give a run that clsp pretrain has finished"
        )

    try:
        config = json.loads(path.read_text(encoding="utf-8"))["pretrained_cfg"]
        absent = [name for name in ("mean", "std", "input_size") if name not in config]
        if absent:
            raise ValueError(f"its pretrained_cfg lacks {', '.join(absent)}")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0, **options)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:
        raise InputError(f"{folder} is no loadable timm backbone: {_reason(error)}") from error

    return model.eval().requires_grad_(False), config


def load_initial(model: nn.Module, name: str) -> None:
    """Load the weights that a backbone starts from, `pretrain.init`, into a model; every key has to fit.

    Raises:
        InputError: there is no such model, or it is of another architecture; names the first keys that do not fit.
    """
    weights = _initial_model(name).state_dict()
    own = model.state_dict()
    faults = []
    for key in [*own, *(key for key in weights if key not in own)]:
        there = tuple(weights[key].shape) if key in weights else "absent"
        here = tuple(own[key].shape) if key in own else "absent"
        if there != here:
            faults.append(f"{key}: {there} there, {here} here")

    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise InputError(
            f"pretrain.init = {name} does not fit pretrain.backbone ({'; '.join(faults[:3])}{more}); "
            "expected the same architecture, stem and backbone_kwargs"
        )
    model.load_state_dict(weights, strict=True)


def _initial_model(name: str) -> nn.Module:
    folder = _initial_folder(name)
    if folder is not None:
        return load_backbone(folder)[0]

    try:
        return timm.create_model(name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        raise InputError(
            f"pretrain.init = {name}: no folder of a run or of a timm model, and timm cannot load it ({_reason(error)})"
        ) from error


def _initial_folder(name: str) -> Path | None:
    """Return the folder of a run's backbone or of a timm model; None for a name of timm's or a hub id."""
    path = Path(local_path(name))
    for folder in (path / "backbone", path):
        if (folder / "config.json").exists():
            return folder

    is_path = name.startswith(("/", ".", "~")) or path.exists()
    if is_path:
        raise InputError(
            f"pretrain.init = {name} holds no backbone; expected a finished run or the folder of a timm model"
        )
    return None


def initial_digest(name: str) -> str:
    """Return the SHA-256 of the weights of `pretrain.init`; timm's name or the hub id where that is one."""
    folder = _initial_folder(name)
    return name if folder is None else sha256_file(folder / "model.safetensors")


def embed(model: nn.Module, images_BCHW: torch.Tensor) -> torch.Tensor:
    """Return the pooled features `(B, F)` float32 of normalised images."""
    return model(images_BCHW).flatten(1).float()
