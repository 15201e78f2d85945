"""Keep a slowly moving copy of an encoder (MoCo, He et al., CVPR 2020)."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn

from ..config import PretrainConfig


def key_momentum(step: int, steps: int, config: PretrainConfig) -> float:
    """Return the momentum at a step: from `momentum_start` to `momentum_end` along a cosine, as in MoCo v2+."""
    share = 0.5 * (1 + math.cos(math.pi * step / steps))
    return config.momentum_end - (config.momentum_end - config.momentum_start) * share


class MomentumCopy(nn.Module):
    """Copies modules and lets the copies follow them, `θ_k ← m·θ_k + (1-m)·θ_q`, without gradient.

    Batch norms are in train mode.

    Args:
        parts: that a batch goes through in, one after the other.
    """

    def __init__(self, *modules: nn.Module, parts: int = 1):
        super().__init__()
        self.parts = parts
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
        return torch.cat([self.copies(part) for part in x.chunk(self.parts)])
