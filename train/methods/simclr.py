"""SimCLR (Chen et al., ICML 2020)."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..distributed import gather_with_gradient, rank_and_world_size
from ..losses import nt_xent
from .base import Method
from .registry import register


@register("simclr")
class SimCLR(Method):
    """Computes NT-Xent between two views, negatives from the global batch. With the synthetic term: CLSP-SimCLR.

    >>> from clsp.train.example import example_config
    >>> method = SimCLR(example_config())
    >>> view1, view2, synthetic = torch.randn(3, 4, 3, 8, 8)
    >>> labels_B = torch.full((4,), -1)  # it needs none
    >>> sorted(method([view1, view2], synthetic, None, labels_B))
    ['contrastive', 'synthetic']
    >>> sorted(method([view1, view2], None, None, labels_B))
    ['contrastive']
    """

    has_decoupled_loss = True

    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `contrastive`: NT-Xent, or its decoupled form, of the local samples against all ranks' embeddings."""
        z1, z2 = (F.normalize(y, dim=1) for y in y_BD)
        everyone1 = gather_with_gradient(z1)
        everyone2 = gather_with_gradient(z2)
        rank, _ = rank_and_world_size()
        loss = nt_xent(
            z1, z2, self.config.temperature, everyone1, everyone2, rank, self.config.decoupled
        )
        return {"contrastive": loss}
