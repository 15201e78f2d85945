"""Losses: pure functions of L2-normalised embeddings.

Shape legend: B local batch, N global batch (all ranks), D embedding dimension.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch.nn import functional as F

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def in_float32(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Make a loss compute in float32 also under autocast: bfloat16 would round logits to 0.03 and mix up neighbours."""

    def widened(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
        return [widened(part) for part in value] if isinstance(value, list | tuple) else value

    @functools.wraps(function)
    def computed(*arguments: Arguments.args, **options: Arguments.kwargs) -> Result:
        first: Any = arguments[0]
        device = first.device if isinstance(first, torch.Tensor) else first[0].device

        with torch.autocast(device.type, enabled=False):
            widened_arguments: Any = map(widened, arguments)
            widened_options: Any = {name: widened(value) for name, value in options.items()}
            compute: Any = function
            return compute(*widened_arguments, **widened_options)

    return computed


@in_float32
def nt_xent(
    z1_BD: torch.Tensor,
    z2_BD: torch.Tensor,
    temperature: float,
    all_z1_ND: torch.Tensor | None = None,
    all_z2_ND: torch.Tensor | None = None,
    rank: int = 0,
) -> torch.Tensor:
    """Compute NT-Xent (Chen et al. 2020, equation 1) of the local samples: each view against the 2N-1 other embeddings.

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
    local = len(z1_BD)
    everyone = len(all_z1_ND)

    # s_ij / τ of both views' queries to all 2N embeddings
    logits = torch.cat([z1_BD, z2_BD]) @ torch.cat([all_z1_ND, all_z2_ND]).T / temperature

    # k ≠ i: an embedding is no negative of itself
    own = torch.arange(local, device=z1_BD.device) + rank * local
    itself = torch.cat([own, own + everyone])
    logits = logits.scatter(1, itself[:, None], float("-inf"))

    # -log softmax at the other view of the same image
    positive = torch.cat([own + everyone, own])
    return F.cross_entropy(logits, positive)


@in_float32
def alignment(
    z1_BD: torch.Tensor, z3_BD: torch.Tensor, weights_B: torch.Tensor | None = None
) -> torch.Tensor:
    """Compute the term before λ (CLSP, section 3.3): `mean(w · (2 - 2·cos(z_1, z_3)))`, gradient on both sides.

    Args:
        weights_B: a weight per sample, 1 by default; the mean is over all B samples.
    """
    distances_B = 2 - 2 * (z1_BD * z3_BD).sum(dim=1)
    return (distances_B if weights_B is None else distances_B * weights_B).mean()


@in_float32
def info_nce(
    q_BD: torch.Tensor, k_BD: torch.Tensor, queue_QD: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Compute InfoNCE with a queue (MoCo, equation 1): each query against its key and all of the queue.

    Keys and queue are constants.
    """
    # q·k₊ / τ first, then q·k_i / τ of the queue
    positive_B1 = (q_BD * k_BD).sum(dim=1, keepdim=True)
    logits = torch.cat([positive_B1, q_BD @ queue_QD.T], dim=1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(q_BD), dtype=torch.long, device=q_BD.device))


@in_float32
def cross_view(
    target_BD: torch.Tensor, all_p_ND: torch.Tensor, temperature: float, rank: int = 0
) -> torch.Tensor:
    """Contrast each local target with the other view's outputs for the whole global batch (NNCLR, equation 3).

    Args:
        target_BD: of unit length; what the output of the same sample should be near to.
        all_p_ND: the other view's outputs of all ranks in rank order, of unit length, gathered with gradient.
    """
    logits = target_BD @ all_p_ND.T / temperature
    own = torch.arange(len(target_BD), device=logits.device) + rank * len(target_BD)
    return F.cross_entropy(logits, own)


@in_float32
def supervised_contrastive(
    z_BD: torch.Tensor,
    all_z_ND: torch.Tensor,
    places_B: torch.Tensor,
    labels_N: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Compute the supervised contrastive loss (Khosla et al. 2020, equation 2): the mean over the local images.

    Args:
        z_BD: local embeddings of both views, of unit length.
        all_z_ND: the embeddings of all images of all ranks, gathered with gradient.
        places_B: where the local ones are among them.
        labels_N: the classes of all.
    """
    # z_i·z_a / τ for a ≠ i
    logits = (z_BD @ all_z_ND.T / temperature).scatter(1, places_B[:, None], float("-inf"))

    # P(i), the others of the same class
    positives = labels_N[places_B][:, None] == labels_N[None]
    positives = positives.scatter(1, places_B[:, None], False)

    # The mean over P(i) of log softmax
    log_probabilities = logits.log_softmax(dim=1)
    sums_B = log_probabilities.masked_fill(~positives, 0.0).sum(dim=1)

    return -(sums_B / positives.sum(dim=1)).mean()


@in_float32
def redundancy(keys_ND: Sequence[torch.Tensor], y_ND: Sequence[torch.Tensor]) -> torch.Tensor:
    """Compute All4One's term on features (equation 8): cross-correlations of two views, towards the identity matrix.

    The mean of the root mean squares of what the diagonal lacks to 1 and of the other entries; features are
    normalised over the batch.

    Args:
        keys_ND: the momentum encoder's embeddings of views 1 and 2, the whole global batch.
        y_ND: the projections of views 1 and 2, the same.
    """
    on = []
    off = []
    for key, y in zip(keys_ND, reversed(y_ND), strict=True):
        # Cross-correlation of the features of one view with those of the other
        correlation = F.normalize(key, dim=0).T @ F.normalize(y, dim=0)

        # What the diagonal lacks to 1, and what the rest is from 0
        diagonal = correlation.diagonal()
        others = len(correlation) * (len(correlation) - 1)
        on.append((diagonal - 1).square().mean())
        off.append((correlation.square().sum() - diagonal.square().sum()) / others)

    return ((on[0] + on[1]) / 2).sqrt() / 2 + ((off[0] + off[1]) / 2).sqrt() / 2
