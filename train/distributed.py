"""All-gather, with and without gradient."""

from typing import Any

import torch
from torch import distributed


def rank_and_world_size() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


@torch.no_grad()
def gather(x: torch.Tensor) -> torch.Tensor:
    """Return the tensors of all ranks joined in rank order, without gradient."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return x

    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(world_size)]
    distributed.all_gather(parts, x)
    return torch.cat(parts)


def gather_with_gradient(x_BD: torch.Tensor) -> torch.Tensor:
    """Return the tensors of all ranks, `(world size · B, D)` in rank order; the gradient flows back to each rank's own.

    With a loss that is local to each rank, DDP's mean of the gradients is the gradient of the mean over the global
    batch.
    """
    return x_BD if rank_and_world_size()[1] == 1 else _Gather.apply(x_BD)


class _Gather(torch.autograd.Function):
    """Gathers by torch's older collectives: several functional ones at a time corrupt gloo's memory (torch 2.14).

    gloo's two threads note each collective's name when it is done, in one string and without a lock; names of more
    than 15 characters, the functional gather's ALLGATHER_COALESCED among them, are on the heap. So backward is a
    plain all-reduce, too, and no reduce-scatter.
    """

    @staticmethod
    def forward(ctx: Any, x_BD: torch.Tensor) -> torch.Tensor:
        ctx.own = len(x_BD)
        return gather(x_BD)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        # The sum over ranks, of which each keeps its own part
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient.split(ctx.own)[distributed.get_rank()]
