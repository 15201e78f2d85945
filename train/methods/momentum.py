"""The slowly moving copy of an encoder (MoCo, He et al. 2020), and the queue of what it has seen."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...core import InputError
from ..config import PretrainConfig
from ..distributed import gather


def key_momentum(step: int, steps: int, config: PretrainConfig) -> float:
    """Return the momentum at a step: from `momentum_start` to `momentum_end` along a cosine, as in MoCo v2+."""
    share = 0.5 * (1 + math.cos(math.pi * step / steps))
    return config.momentum_end - (config.momentum_end - config.momentum_start) * share


class MomentumCopy(nn.Module):
    """Copies modules and lets the copies follow them, `θ_k ← m·θ_k + (1-m)·θ_q`, without gradient.

    Batch norms are in train mode.
    """

    def __init__(self, *modules: nn.Module):
        super().__init__()
        self.copies = nn.Sequential(*(copy.deepcopy(module) for module in modules)).requires_grad_(
            False
        )

    @torch.no_grad()
    def follow(self, modules: Sequence[nn.Module], momentum: float) -> None:
        """Move one step towards the modules; buffers are the copies' own."""
        for follower, module in zip(self.copies, modules, strict=True):
            for kept, new in zip(follower.parameters(), module.parameters(), strict=True):
                kept.lerp_(new, 1 - momentum)

    @torch.no_grad()
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the copies, one after the other."""
        return self.copies(x)


class Queue(nn.Module):
    """Keeps the last `queue_size` embeddings of all ranks, `(Q, D)` of unit length, the same on every rank.

    Raises:
        InputError: the size is no multiple of the global batch.
    """

    embeddings_QD: torch.Tensor
    place: torch.Tensor

    def __init__(self, config: PretrainConfig):
        super().__init__()
        if config.queue_size % config.batch_size:
            raise InputError(
                f"pretrain.queue_size is {config.queue_size}, expected a multiple of batch_size = {config.batch_size}"
            )

        self.register_buffer(
            "embeddings_QD",
            F.normalize(torch.randn(config.queue_size, config.projector_out), dim=1),
        )
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, z_BD: torch.Tensor) -> None:
        """Put the global batch in the place of the oldest entries."""
        everyone = gather(z_BD.detach()).to(self.embeddings_QD.dtype)
        start = int(self.place)

        # Another tensor, since the loss of this step still refers to the old one.
        self.embeddings_QD = self.embeddings_QD.clone()
        self.embeddings_QD[start : start + len(everyone)] = everyone
        self.place = (self.place + len(everyone)) % len(self.embeddings_QD)
