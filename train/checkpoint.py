"""Checkpoints: one safetensors file per point in time, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from ..core import InputError, write_file
from .backbone import unshared

FOLDER = "checkpoints"


def save_checkpoint(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    keep: int,
    kept_step: int | None = None,
) -> None:
    """Write everything that a run needs to go on after `state["step"]` steps; the last `keep` files stay.

    Args:
        kept_step: the checkpoint of this step stays as well.
    """
    # Weights
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}

    # Moments of the optimizer
    moments = optimizer.state_dict()["state"]
    for index, values in moments.items():
        for name, value in values.items():
            if value is not None:
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)

    # The new file in, the oldest out
    metadata = {"state": json.dumps(state)}
    content = safetensors.torch.save(unshared(tensors), metadata)
    write_file(checkpoint_path(out, state["step"]), content)
    for old in checkpoints(out)[:-keep]:
        if kept_step is None or old != checkpoint_path(out, kept_step):
            old.unlink(missing_ok=True)


def checkpoint_path(out: Path, step: int) -> Path:
    """Return the file of the checkpoint after so many steps."""
    return out / FOLDER / f"step-{step:09d}.safetensors"


def checkpoints(out: Path) -> list[Path]:
    """Return the checkpoint files of a run, oldest first."""
    return sorted((out / FOLDER).glob("step-*.safetensors"))


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Load a checkpoint into `model` and `optimizer`, strictly, and return its state.

    Raises:
        InputError: the file is damaged or of another model.
    """
    # Weights
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        weights = {
            name.removeprefix("model."): tensors[name]
            for name in tensors
            if name.startswith("model.")
        }
        model.load_state_dict(weights, strict=True)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{path} does not fit this run ({error}); remove it to go on from an earlier one"
        ) from error

    # Moments of the optimizer
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            moments.setdefault(int(index), {})[key] = value

    optimizer.load_state_dict(
        {"state": moments, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    _lay_out_like_parameters(optimizer)
    return state


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give moments the memory format of their parameters: a file has none, and fused optimizers need the same."""
    for parameter, moments in optimizer.state.items():
        for name, value in moments.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(value)
