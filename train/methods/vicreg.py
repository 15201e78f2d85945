"""VICReg (Bardes et al., ICLR 2022): views alike, every dimension alive, dimensions uncorrelated; no negatives."""

from collections.abc import Sequence

import torch

from ..distributed import gather_with_gradient
from ..losses import covariance_penalty, invariance, variance_hinge
from .base import Method
from .registry import register


@register("vicreg")
class VICReg(Method):
    """Adds up invariance, variance and covariance of the projections, the last two over the global batch.

    >>> from clsp.train.example import example_config
    >>> method = VICReg(example_config("vicreg"))
    >>> view1, view2, synthetic = torch.randn(3, 4, 3, 8, 8)
    >>> sorted(method([view1, view2], synthetic, None, labels_B=torch.full((4,), -1)))
    ['covariance', 'invariance', 'synthetic', 'variance']
    """

    norm_behind_projector = False

    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `invariance`, `variance` and `covariance`, each with its weight in it (equation 6)."""
        y1, y2 = y_BD
        all1, all2 = (gather_with_gradient(y) for y in y_BD)
        config = self.config

        # λ·s + μ·(v(y_1) + v(y_2)) + ν·(c(y_1) + c(y_2))
        return {
            "invariance": config.invariance_weight * invariance(y1, y2),
            "variance": config.variance_weight * (variance_hinge(all1) + variance_hinge(all2)),
            "covariance": config.covariance_weight
            * (covariance_penalty(all1) + covariance_penalty(all2)),
        }
