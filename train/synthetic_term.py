"""The synthetic term: what pulls the third views and the sample's own together, the same for all methods."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from .config import PretrainConfig
from .distributed import gather, gather_with_gradient, rank_and_world_size
from .losses import alignment, mean_target, multi_positive, robust_info_nce


def synthetic_term(
    config: PretrainConfig,
    views_BD: Sequence[torch.Tensor],
    thirds_BD: Sequence[torch.Tensor],
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the term before λ, by the loss that the settings name; it contrasts, if at all, over the global batch.

    Args:
        views_BD: projections of the ordinary views, not normalised.
        thirds_BD: those of the M third views.
        weights: of the samples `(B,)` or of their M candidates `(B, M)`, all 1 by default; with 0 one takes no part.
    """
    views_BD = [F.normalize(y_BD, dim=1) for y_BD in views_BD]
    thirds_BD = [F.normalize(y_BD, dim=1) for y_BD in thirds_BD]

    match config.synthetic.loss:
        case "alignment":
            return _alignment(views_BD[0], thirds_BD, weights)

        case "mean_target":
            weights_BM = _weights_of_all(thirds_BD, weights)
            return mean_target(views_BD[0], torch.stack(thirds_BD, dim=1), weights_BM)

        case "multi_positive":
            weights_BM = _weights_of_all(thirds_BD, weights)
            return _multi_positive(config, [*views_BD, *thirds_BD], weights_BM)

        case "robust":
            weights_BM = _weights_of_all(thirds_BD, weights)
            return _robust(config, views_BD[0], thirds_BD, weights_BM)


def _alignment(
    z1_BD: torch.Tensor, thirds_BD: Sequence[torch.Tensor], weights: torch.Tensor | None
) -> torch.Tensor:
    """Return the mean over the M third views, a single one exactly as `alignment` has it."""
    parts: Sequence[torch.Tensor | None] = [weights] * len(thirds_BD)
    if weights is not None and weights.dim() == 2:
        parts = weights.unbind(dim=1)

    terms = [alignment(z1_BD, z3_BD, part) for z3_BD, part in zip(thirds_BD, parts, strict=True)]
    return torch.stack(terms).mean()


def _multi_positive(
    config: PretrainConfig, members_BD: Sequence[torch.Tensor], weights_BM: torch.Tensor
) -> torch.Tensor:
    members_BLD = torch.stack(list(members_BD), dim=1)
    rank, _ = rank_and_world_size()
    return multi_positive(
        members_BLD,
        weights_BM,
        config.temperature,
        gather_with_gradient(members_BLD),
        gather(weights_BM),
        rank,
    )


def _robust(
    config: PretrainConfig,
    z1_BD: torch.Tensor,
    thirds_BD: Sequence[torch.Tensor],
    weights_BM: torch.Tensor,
) -> torch.Tensor:
    """Return the mean over the M third views, each of which meets the others' of its own number alone."""
    rank, _ = rank_and_world_size()
    all_z1_ND = gather_with_gradient(z1_BD)
    all_weights_NM = gather(weights_BM)

    terms = []
    for place, z3_BD in enumerate(thirds_BD):
        term = robust_info_nce(
            z1_BD,
            z3_BD,
            weights_BM[:, place],
            config.temperature,
            config.synthetic.robust_q,
            config.synthetic.robust_lambda,
            all_z1_ND,
            gather_with_gradient(z3_BD),
            all_weights_NM[:, place],
            rank,
        )
        terms.append(term)

    return torch.stack(terms).mean()


def _weights_of_all(
    thirds_BD: Sequence[torch.Tensor], weights: torch.Tensor | None
) -> torch.Tensor:
    """Return a weight of every third view, `(B, M)` float32.

    Also where all are 1, for another rank's may not be, and every rank has to gather what any of them does.
    """
    first_BD = thirds_BD[0]
    if weights is None:
        weights = torch.ones(len(first_BD), device=first_BD.device)
    if weights.dim() == 1:
        weights = weights[:, None].expand(-1, len(thirds_BD))

    return weights
