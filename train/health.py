"""Tell without labels how embeddings are doing: how many directions they use, how near positives are, if they collapse.

Shape legend: N samples, D dimensions.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import torch
from torch.nn import functional as F

MEASURED = 1024
"""The most samples that are looked at."""
COLLAPSED = 0.05
"""The deviation below which a run is said to collapse; embeddings that fill the sphere have 1. On digits collapsed runs
had 0.01 to 0.04 after an epoch, others 0.06 and more."""
FALLEN = 0.25
"""The share of its largest deviation below which a run is said to collapse, too. One of NNCLR fell from 0.96 over three
epochs and then stayed between 0.06 and 0.21, with RankMe near 3; the healthy ones beside it kept 0.86 and more."""


class Embeddings(NamedTuple):
    """Holds the projections of samples, not normalised: of view 1, and of the view that is pulled towards it."""

    view1_ND: torch.Tensor
    positive_ND: torch.Tensor


@dataclass(frozen=True)
class Health:
    """Holds measures of embeddings; see `measure_health`.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> view1_ND = torch.randn(512, 16)
    >>> health = measure_health(Embeddings(view1_ND, view1_ND + 0.1 * torch.randn(512, 16)))
    >>> 14 < health.rankme <= 16, health.deviation > 0.9, health.nearest > 0.9
    (True, True, True)
    """

    rankme: float
    """From 1 to D: how many directions the embeddings use (Garrido et al., ICML 2023, equation 1)."""
    alignment: float
    """From 0 to 4: the mean squared distance of a positive from its view 1 (Wang & Isola, ICML 2020)."""
    uniformity: float
    """From -4 to 0, lower is more even: log of the mean of exp(-2·distance²) over all pairs (ibid.)."""
    deviation: float
    """The mean deviation of a dimension, times sqrt(D): 1 where embeddings fill the sphere, 0 where all are alike."""
    nearest: float
    """Share of the positives that are nearer to their own view 1 than to that of any other sample."""

    def collapses(self, largest: float = 0.0) -> bool:
        """Return True if the embeddings are nearly all alike, or far more so than they were.

        Args:
            largest: the largest deviation of the run so far; 0 where there is none yet.
        """
        return self.deviation < COLLAPSED or self.deviation < FALLEN * largest

    def content(self) -> dict[str, float]:
        """Return the measures by their names in the log."""
        return asdict(self)


@torch.no_grad()
def measure_health(embeddings: Embeddings) -> Health:
    """Measure the embeddings of at least two samples, the first `MEASURED` of them."""
    z1_ND = F.normalize(embeddings.view1_ND[:MEASURED].float(), dim=1)
    z3_ND = F.normalize(embeddings.positive_ND[:MEASURED].float(), dim=1)
    count, width = z1_ND.shape

    # RankMe: the exponential of the entropy of the singular values, as shares
    singular = torch.linalg.svdvals(z1_ND)
    shares = singular / singular.sum().clamp(min=1e-12) + 1e-7
    rankme = torch.exp(-(shares * shares.log()).sum())

    # Alignment and uniformity
    alignment = (z1_ND - z3_ND).square().sum(dim=1).mean()
    distances = torch.pdist(z1_ND).square()
    uniformity = torch.logsumexp(-2 * distances, dim=0) - math.log(len(distances))

    # How the dimensions spread
    deviation = z1_ND.std(dim=0).mean() * math.sqrt(width)

    # Is the own anchor the nearest one?
    cosines_NN = z3_ND @ z1_ND.T
    own_N = cosines_NN.diagonal()
    others_NN = cosines_NN.masked_fill(torch.eye(count, dtype=torch.bool, device=z1_ND.device), -2)
    nearest = (own_N > others_NN.max(dim=1).values).float().mean()

    values = torch.stack([rankme, alignment, uniformity, deviation, nearest]).tolist()
    return Health(*values)


def joined(parts: Sequence[Embeddings]) -> Embeddings:
    """Return the embeddings of the parts of a batch together."""
    view1_ND = torch.cat([part.view1_ND for part in parts])
    positive_ND = torch.cat([part.positive_ND for part in parts])
    return Embeddings(view1_ND, positive_ND)
