"""All-gather, with and without gradient: the one place that knows which of torch's functions to use."""

import importlib
from typing import Any

import torch
from torch import distributed


def rank_and_world_size() -> tuple[int, int]:
    """This process's rank and the number of processes; (0, 1) without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@torch.no_grad()
def gather(x: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks joined in rank order, without gradient."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(world_size)]
    distributed.all_gather(parts, x.contiguous())
    return torch.cat(parts)


def gather_with_gradient(x_BD: torch.Tensor) -> torch.Tensor:
    """The tensors of all ranks, `(world size · B, D)` in rank order; the gradient flows back to each rank's own.

    With a loss that is local to each rank, DDP's mean of the gradients is the gradient of the mean over the global
    batch.
    """
    if rank_and_world_size()[1] == 1:
        return x_BD
    x_BD = x_BD.contiguous()
    collectives: Any = importlib.import_module("torch.distributed._functional_collectives")
    if hasattr(collectives, "all_gather_single_autograd"):  # newer torch
        return collectives.all_gather_single_autograd(x_BD, 0, distributed.group.WORLD)
    from torch.distributed.nn.functional import all_gather

    return torch.cat(list(all_gather(x_BD)))
