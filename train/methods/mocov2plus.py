"""MoCo v2+: MoCo v2 (Chen et al. 2020) made symmetric, with a queue per view; as in solo-learn."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..config import PretrainConfig
from ..losses import info_nce
from .base import Method
from .momentum import MomentumCopy, key_momentum
from .queue import Queue
from .registry import register


@register("mocov2plus")
class MoCoV2Plus(Method):
    """Computes InfoNCE of each view's query and the other's key, negatives from a queue. With the term: CLSP-MoCo.

    >>> from clsp.train.example import example_config
    >>> method = MoCoV2Plus(example_config("mocov2plus"))
    >>> views = torch.randn(2, 4, 3, 8, 8).unbind()
    >>> method.before_step(0, steps=100)  # moves the key encoder
    >>> losses = method(views, None, None, labels_B=torch.full((4,), -1))
    >>> losses["contrastive"].backward()
    >>> [parameter for parameter in method.keys.parameters() if parameter.grad is not None]
    []
    """

    has_momentum = True

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.keys = MomentumCopy(self.backbone, self.projector)
        self.queue1 = Queue(config)
        self.queue2 = Queue(config)

    def before_step(self, step: int, steps: int) -> None:
        """Move the key encoder."""
        self.keys.follow([self.backbone, self.projector], key_momentum(step, steps, self.config))

    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `contrastive`: the mean of both directions."""
        q1, q2 = (F.normalize(y, dim=1) for y in y_BD)
        k1, k2 = (F.normalize(key, dim=1) for key in self.passed(self.keys, views))

        # Each view's query against the other's key and queue
        temperature = self.config.temperature
        first = info_nce(q1, k2, self.queue2.embeddings_QD, temperature)
        second = info_nce(q2, k1, self.queue1.embeddings_QD, temperature)

        # The keys are the next step's negatives
        self.queue1.add(k1)
        self.queue2.add(k2)
        return {"contrastive": (first + second) / 2}
