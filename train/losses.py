"""Losses: pure functions of L2-normalised embeddings.

Shape legend: B local batch, N global batch (all ranks), D embedding dimension.
"""

import torch
from torch.nn import functional as F


def nt_xent(
    z1_BD: torch.Tensor,
    z2_BD: torch.Tensor,
    temperature: float,
    all_z1_ND: torch.Tensor | None = None,
    all_z2_ND: torch.Tensor | None = None,
    rank: int = 0,
) -> torch.Tensor:
    """NT-Xent (Chen et al. 2020, equation 1) of the local samples: each view against the 2N-1 other embeddings.

    Args:
        z1_BD, z2_BD: the local embeddings of views 1 and 2, of unit length.
        temperature: τ.
        all_z1_ND, all_z2_ND: those of all ranks in rank order, gathered with gradient; default: the local ones.
        rank: whose part of the gathered embeddings is the local one.

    Returns:
        The mean over the 2B local queries, a scalar.
    """
    all_z1_ND = z1_BD if all_z1_ND is None else all_z1_ND
    all_z2_ND = z2_BD if all_z2_ND is None else all_z2_ND
    local, everyone = len(z1_BD), len(all_z1_ND)
    logits = torch.cat([z1_BD, z2_BD]) @ torch.cat([all_z1_ND, all_z2_ND]).T / temperature
    own = torch.arange(local, device=z1_BD.device) + rank * local
    itself = torch.cat([own, own + everyone])
    positive = torch.cat([own + everyone, own])
    logits = logits.scatter(1, itself[:, None], float("-inf"))
    return F.cross_entropy(logits.float(), positive)


def alignment(z1_BD: torch.Tensor, z3_BD: torch.Tensor, weights_B: torch.Tensor | None = None) -> torch.Tensor:
    """The synthetic term before λ (CLSP, section 3.3): `mean(w · (2 - 2·cos(z_1, z_3)))`, gradient on both sides.

    Args:
        weights_B: a weight per sample, 1 by default; the mean is over all B samples.
    """
    distances_B = 2 - 2 * (z1_BD.float() * z3_BD.float()).sum(dim=1)
    return (distances_B if weights_B is None else distances_B * weights_B).mean()
