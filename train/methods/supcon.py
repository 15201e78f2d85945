"""Supervised contrastive learning (Khosla et al., NeurIPS 2020): labels, so an upper bound for the others."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..distributed import gather, gather_with_gradient, rank_and_world_size
from ..losses import supervised_contrastive
from .base import Method
from .registry import register


@register("supcon")
class SupCon(Method):
    """Contrasts with labels: every image of the class is a positive, in both views and on all ranks.

    >>> from clsp.train.example import example_config
    >>> method = SupCon(example_config("supcon")).eval()
    >>> views = torch.randn(2, 4, 3, 8, 8).unbind()
    >>> in_pairs = method(views, None, None, labels_B=torch.tensor([0, 0, 1, 1]))
    >>> all_alike = method(views, None, None, labels_B=torch.tensor([0, 0, 0, 0]))
    >>> torch.equal(in_pairs["contrastive"], all_alike["contrastive"])
    False
    """

    needs_labels = True

    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `contrastive`: the loss with the sum outside of the logarithm (equation 2)."""
        # Both views of all ranks
        z1, z2 = (F.normalize(y, dim=1) for y in y_BD)
        everyone = torch.cat([gather_with_gradient(z1), gather_with_gradient(z2)])
        labels = gather(labels_B).repeat(2)

        # The local ones among them
        rank, _ = rank_and_world_size()
        own = torch.arange(len(z1), device=z1.device) + rank * len(z1)
        places = torch.cat([own, own + len(everyone) // 2])

        loss = supervised_contrastive(
            torch.cat([z1, z2]), everyone, places, labels, self.config.temperature
        )
        return {"contrastive": loss}
