"""NNCLR (Dwibedi et al., ICCV 2021): the positive is a view's nearest neighbour among earlier embeddings."""

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from ..config import PretrainConfig
from ..distributed import gather_with_gradient, rank_and_world_size
from ..losses import cross_view, in_float32
from .base import Method, mlp
from .momentum import Queue
from .registry import register


@register("nnclr")
class NNCLR(Method):
    """Contrasts the neighbour of one view with the predictions of the other, over the global batch.

    >>> from clsp.train.example import example_config
    >>> method = NNCLR(example_config("nnclr"))
    >>> views = torch.randn(2, 4, 3, 8, 8).unbind()
    >>> losses = method(views, None, None, labels_B=torch.full((4,), -1))
    >>> int(method.queue.place)  # the queue has taken up the batch
    4
    """

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        self.predictor = mlp(
            [config.projector_out, config.predictor_hidden, config.projector_out], config.head_norm
        )
        self.queue = Queue(config)

    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `contrastive`: the mean of both directions (equation 3, with the predictor's outputs gathered)."""
        z1, z2 = (F.normalize(y.detach(), dim=1) for y in y_BD)
        p1, p2 = (F.normalize(p, dim=1) for p in self.passed(self.predictor, y_BD))

        # NN(z, Q)
        queue = self.queue.embeddings_QD
        neighbour1 = nearest(z1, queue, 1)[:, 0]
        neighbour2 = nearest(z2, queue, 1)[:, 0]

        # Both directions
        temperature = self.config.temperature
        rank, _ = rank_and_world_size()
        first = cross_view(neighbour1, gather_with_gradient(p2), temperature, rank)
        second = cross_view(neighbour2, gather_with_gradient(p1), temperature, rank)
        self.queue.add(z1)

        return {"contrastive": (first + second) / 2}


@torch.no_grad()
@in_float32
def nearest(z_BD: torch.Tensor, queue_QD: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` entries with the highest cosine, `(B, count, D)`, the nearest first."""
    return queue_QD[(z_BD @ queue_QD.T).topk(count, dim=1).indices]
