"""Losses: pure functions of embeddings, L2-normalised but where a loss says otherwise.

Shape legend: B local batch, N global batch (all ranks), D embedding dimension.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch.nn import functional as F

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

TINY = 1e-12
"""Keeps sums of no weights at all from dividing by 0."""
VARIANCE_FLOOR = 1e-4
"""VICReg's ε: it keeps the gradient of the square root finite where a dimension has collapsed."""


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
    decoupled: bool = False,
) -> torch.Tensor:
    """Compute NT-Xent (Chen et al. 2020, equation 1) of the local samples: each view against the 2N-1 other embeddings.

    Args:
        z1_BD, z2_BD: the local embeddings of views 1 and 2, of unit length.
        temperature: τ.
        all_z1_ND, all_z2_ND: those of all ranks in rank order, gathered with gradient; default: the local ones.
        rank: whose part of the gathered embeddings is the local one.
        decoupled: leave the positive out of the denominator (DCL, Yeh et al. 2022): `-s₊/τ + log Σ exp(s₋/τ)`.

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
    places = torch.cat([own + everyone, own])
    if not decoupled:
        return F.cross_entropy(logits, places)

    # The same with the sum over the negatives alone
    positive = logits.gather(1, places[:, None])[:, 0]
    negatives = logits.scatter(1, places[:, None], float("-inf"))
    return (negatives.logsumexp(dim=1) - positive).mean()


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
def mean_target(
    z1_BD: torch.Tensor, third_BMD: torch.Tensor, weights_BM: torch.Tensor
) -> torch.Tensor:
    """Compute `mean(w · (2 - 2·cos(z_1, t)))` with t the mean of the M projections: `Σ_m w_m·z_m`, made of unit length.

    Args:
        third_BMD: the embeddings of the M third views, of unit length.
        weights_BM: a weight of each; the sample's own, w, is their mean.
    """
    target_BD = F.normalize((weights_BM[:, :, None] * third_BMD).sum(dim=1), dim=1)
    return alignment(z1_BD, target_BD, weights_BM.mean(dim=1))


@in_float32
def multi_positive(
    members_BLD: torch.Tensor,
    weights_BM: torch.Tensor,
    temperature: float,
    all_members_NLD: torch.Tensor | None = None,
    all_weights_NM: torch.Tensor | None = None,
    rank: int = 0,
) -> torch.Tensor:
    """Compute the multi-positive loss (SynCLR, Tian et al. 2024): all views and candidates of a sample are alike.

    Each of these members is a query against all other members of the global batch: cross-entropy of
    `softmax(z·z_j / τ)` against the uniform distribution over the others of its sample. A sample counts as much as the
    mean of its candidates' weights. A candidate of weight 0, and a sample whose weights are all 0, are neither queries
    nor positives nor negatives. Where weights differ, candidates are positives and queries in proportion to them, with
    1 on average, which is what a view counts.

    Args:
        members_BLD: the local embeddings, of unit length: of L - M ordinary views, then of the M candidates.
        weights_BM: a weight of each candidate, at least 0.
        temperature: τ.
        all_members_NLD, all_weights_NM: those of all ranks in rank order, the first gathered with gradient.
        rank: whose part of the gathered ones is the local one.
    """
    all_members_NLD = members_BLD if all_members_NLD is None else all_members_NLD
    all_weights_NM = weights_BM if all_weights_NM is None else all_weights_NM
    members = members_BLD.shape[1]
    views = members - weights_BM.shape[1]
    shares_Q = _member_shares(weights_BM, views).flatten()
    shares_K = _member_shares(all_weights_NM, views).flatten()

    # z_i·z_j / τ; j ≠ i, and j takes part
    logits_QK = members_BLD.flatten(0, 1) @ all_members_NLD.flatten(0, 1).T / temperature
    queries = torch.arange(len(logits_QK), device=logits_QK.device) + rank * len(logits_QK)
    keys = torch.arange(len(shares_K), device=logits_QK.device)
    is_itself_QK = queries[:, None] == keys
    is_out_QK = is_itself_QK | (shares_K == 0)
    log_q_QK = _without(logits_QK, is_out_QK).log_softmax(dim=1)

    # p_j, over the other members of the same sample
    is_positive_QK = (queries[:, None] // members == keys // members) & ~is_out_QK
    p_QK = shares_K * is_positive_QK
    p_QK = p_QK / p_QK.sum(dim=1, keepdim=True).clamp(min=TINY)

    # -Σ_j p_j·log q_j of each member, their mean, and w of the sample
    losses_Q = -(p_QK * log_q_QK.masked_fill(~is_positive_QK, 0.0)).sum(dim=1)
    losses_B = (shares_Q * losses_Q).unflatten(0, (-1, members)).sum(dim=1)
    losses_B = losses_B / shares_Q.unflatten(0, (-1, members)).sum(dim=1).clamp(min=TINY)

    return (weights_BM.mean(dim=1) * losses_B).mean()


def _member_shares(weights_BM: torch.Tensor, views: int) -> torch.Tensor:
    """Return what each member counts in its sample, `(B, L)`: a view 1, the candidates that take part 1 on average."""
    taking_part_B1 = (weights_BM > 0).sum(dim=1, keepdim=True)
    mean_B1 = weights_BM.sum(dim=1, keepdim=True) / taking_part_B1.clamp(min=1)
    of_views_BV = (taking_part_B1 > 0).to(weights_BM.dtype).expand(-1, views)
    return torch.cat([of_views_BV, weights_BM / mean_B1.clamp(min=TINY)], dim=1)


@in_float32
def robust_info_nce(
    z1_BD: torch.Tensor,
    z3_BD: torch.Tensor,
    weights_B: torch.Tensor,
    temperature: float,
    q: float,
    strength: float,
    all_z1_ND: torch.Tensor | None = None,
    all_z3_ND: torch.Tensor | None = None,
    all_weights_N: torch.Tensor | None = None,
    rank: int = 0,
) -> torch.Tensor:
    """Compute RINCE (Chuang et al. 2022) between view 1 and a third view, each against the other.

    The mean over both directions of `w · (-exp(q·s₊/τ) / q + (λ·(exp(s₊/τ) + Σ exp(s₋/τ)))^q / q)`, with s₊ the cosine
    of the pair, and s₋ those with the 2N - 2 embeddings of the other samples. A sample of weight 0 is no negative.

    Args:
        weights_B: a weight per sample, at least 0; the mean is over all B samples.
        temperature: τ.
        q: in (0, 1]; towards 0 the gradient becomes that of InfoNCE times a constant.
        strength: λ.
        all_z1_ND, all_z3_ND, all_weights_N: those of all ranks in rank order, the embeddings gathered with gradient.
        rank: whose part of the gathered ones is the local one.
    """
    all_z1_ND = z1_BD if all_z1_ND is None else all_z1_ND
    all_z3_ND = z3_BD if all_z3_ND is None else all_z3_ND
    all_weights_N = weights_B if all_weights_N is None else all_weights_N
    everyone = len(all_z1_ND)

    # s / τ of both views' queries to all 2N embeddings
    logits = torch.cat([z1_BD, z3_BD]) @ torch.cat([all_z1_ND, all_z3_ND]).T / temperature
    own_B = torch.arange(len(z1_BD), device=logits.device) + rank * len(z1_BD)
    positive = logits.gather(1, torch.cat([own_B + everyone, own_B])[:, None])[:, 0]

    # log(exp(s₊/τ) + Σ exp(s₋/τ)), without the query itself and those that take no part
    keys = torch.arange(2 * everyone, device=logits.device)
    is_itself = torch.cat([own_B, own_B + everyone])[:, None] == keys
    is_out = is_itself | (all_weights_N == 0).repeat(2)
    total = _without(logits, is_out).logsumexp(dim=1)

    losses = -(q * positive).exp() / q + (q * (math.log(strength) + total)).exp() / q
    return (weights_B.repeat(2) * losses).mean()


def _without(logits: torch.Tensor, is_out: torch.Tensor) -> torch.Tensor:
    """Give some logits a probability of exactly 0; a row without any other one stays finite, which -inf would not."""
    return logits.masked_fill(is_out, torch.finfo(logits.dtype).min)


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


@in_float32
def invariance(y1_BD: torch.Tensor, y2_BD: torch.Tensor) -> torch.Tensor:
    """Compute VICReg's s (Bardes et al., ICLR 2022, equation 5), over D as its authors do: `mean_nd (y_1 - y_2)²`.

    Args:
        y1_BD, y2_BD: projections of the two views, not normalised.
    """
    return F.mse_loss(y1_BD, y2_BD)


@in_float32
def variance_hinge(y_ND: torch.Tensor) -> torch.Tensor:
    """Compute VICReg's v (equation 1): `mean_d max(0, 1 - sqrt(Var(y_d) + 1e-4))`.

    Args:
        y_ND: projections of a view, not normalised, the whole global batch; the variance is over N - 1.
    """
    deviations_D = (y_ND.var(dim=0) + VARIANCE_FLOOR).sqrt()
    return F.relu(1 - deviations_D).mean()


@in_float32
def covariance_penalty(y_ND: torch.Tensor) -> torch.Tensor:
    """Compute VICReg's c (equations 3 and 4): `1/D · Σ_{i≠j} Cov(y)_ij²`, the covariance over N - 1.

    Args:
        y_ND: projections of a view, not normalised, the whole global batch.
    """
    # Cov(y) = Σ_n (y_n - mean)(y_n - mean)ᵀ / (N - 1)
    centred_ND = y_ND - y_ND.mean(dim=0)
    covariance_DD = centred_ND.T @ centred_ND / (len(y_ND) - 1)

    # All but the diagonal
    is_own_DD = torch.eye(len(covariance_DD), dtype=torch.bool, device=y_ND.device)
    return covariance_DD.masked_fill(is_own_DD, 0.0).square().sum() / len(covariance_DD)
