"""BYOL (Grill et al., NeurIPS 2020): predict what a momentum encoder makes of the other view; no negatives."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..config import PretrainConfig
from ..losses import alignment
from .base import Method, mlp
from .momentum import MomentumCopy, key_momentum
from .registry import register


@register("byol")
class BYOL(Method):
    """Pulls each view's prediction to the momentum encoder's projection of the other view.

    Nothing but the predictor, the momentum and the normalisation in the heads keeps it from collapse, so set
    `projector_norm`.

    >>> from clsp.train.example import example_config
    >>> method = BYOL(example_config("byol"))
    >>> views = torch.randn(2, 4, 3, 8, 8).unbind()
    >>> method.before_step(0, steps=100)  # moves the momentum encoder
    >>> losses = method(views, None, None, labels_B=torch.full((4,), -1))
    >>> 0 <= losses["regression"].item() <= 8
    True
    """

    norm_behind_projector = False
    has_momentum = True

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.predictor = mlp(
            [config.projector_out, config.predictor_hidden, config.projector_out], config.head_norm
        )
        self.keys = MomentumCopy(self.backbone, self.projector, parts=config.cached_parts)

    def before_step(self, step: int, steps: int) -> None:
        """Move the momentum encoder."""
        self.keys.follow([self.backbone, self.projector], key_momentum(step, steps, self.config))

    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `regression`: the sum of both directions of `mean(2 - 2·cos(p, z'))` (equation 2)."""
        p1, p2 = (F.normalize(p, dim=1) for p in self.passed(self.predictor, y_BD))
        target1, target2 = (F.normalize(key, dim=1) for key in self.passed(self.keys, views))
        return {"regression": alignment(p1, target2) + alignment(p2, target1)}
