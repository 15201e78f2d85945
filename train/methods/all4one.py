"""All4One (Estepa et al., ICCV 2023): neighbours, their centroid by self-attention, and redundancy reduction."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...core import InputError
from ..config import PretrainConfig
from ..distributed import gather, gather_with_gradient, rank_and_world_size
from ..losses import cross_view, redundancy
from .base import Method, mlp
from .momentum import MomentumCopy, key_momentum
from .nnclr import nearest
from .queue import Queue
from .registry import register

NEIGHBOURS, HEADS, LAYERS, DROPOUT = 5, 8, 3, 0.1
CENTROID_TEMPERATURE = 0.1
WEIGHTS = {"neighbour": 0.5, "centroid": 0.5, "redundancy": 5.0}
"""σ, κ and η of the paper's equation 9."""


@register("all4one")
class All4One(Method):
    """Adds to NNCLR neighbours found by a momentum encoder, a contrast of centroids, and decorrelated features.

    >>> from clsp.train.example import example_config
    >>> method = All4One(example_config("all4one"))
    >>> view1, view2, synthetic = torch.randn(3, 4, 3, 8, 8)
    >>> sorted(method([view1, view2], synthetic, None, labels_B=torch.full((4,), -1)))
    ['centroid', 'neighbour', 'redundancy', 'synthetic']
    """

    positions: torch.Tensor

    has_momentum = True

    def __init__(self, config: PretrainConfig):
        super().__init__(config)
        width = config.projector_out
        if width % HEADS:
            raise InputError(
                f"pretrain.projector_out is {width}, expected a multiple of {HEADS} (attention heads)"
            )

        self.predictor, self.centroid_predictor = (
            mlp([width, config.predictor_hidden, width], config.head_norm) for _ in range(2)
        )
        layer = nn.TransformerEncoderLayer(width, HEADS, 2 * width, DROPOUT, batch_first=True)
        self.attention = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.keys = MomentumCopy(self.backbone, self.projector)
        self.queue = Queue(config)
        self.register_buffer("positions", sinusoids(NEIGHBOURS, width), persistent=False)

    def before_step(self, step: int, steps: int) -> None:
        """Move the momentum encoder."""
        self.keys.follow([self.backbone, self.projector], key_momentum(step, steps, self.config))

    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `neighbour`, `centroid` and `redundancy`, each with its weight in it."""
        # The nearest neighbours of the momentum encoder's embeddings
        keys = [F.normalize(key, dim=1) for key in self.passed(self.keys, views)]
        neighbours = [nearest(key, self.queue.embeddings_QD, NEIGHBOURS) for key in keys]
        predictions = self.passed(self.predictor, y_BD)

        # Their centroids
        centroids = [self._centroid(near) for near in neighbours]

        # The shift: the view's own prediction takes the first place and the furthest neighbour falls out.
        own = self.passed(self.centroid_predictor, y_BD)
        shifted = [
            self._centroid(torch.cat([p[:, None], near[:, :-1]], 1))
            for p, near in zip(own, neighbours, strict=True)
        ]

        # σ·neighbour + κ·centroid + η·redundancy (equation 9)
        everyone = [gather_with_gradient(y) for y in y_BD]
        losses = {
            "neighbour": self._both(
                [near[:, 0] for near in neighbours], predictions, self.config.temperature
            ),
            "centroid": self._both(centroids, shifted, CENTROID_TEMPERATURE),
            "redundancy": redundancy([gather(key) for key in keys], everyone),
        }
        self.queue.add(keys[0])

        return {name: WEIGHTS[name] * loss for name, loss in losses.items()}

    def _centroid(self, sequence_BSD: torch.Tensor) -> torch.Tensor:
        return self.attention(sequence_BSD + self.positions)[:, 0]

    def _both(
        self, targets: Sequence[torch.Tensor], found: Sequence[torch.Tensor], temperature: float
    ):
        """Return the mean of view 1's targets against view 2's outputs, and the other way round."""
        rank, _ = rank_and_world_size()
        t1, t2 = (F.normalize(target, dim=1) for target in targets)
        f1, f2 = (gather_with_gradient(F.normalize(output, dim=1)) for output in found)
        return (cross_view(t1, f2, temperature, rank) + cross_view(t2, f1, temperature, rank)) / 2


def sinusoids(length: int, width: int) -> torch.Tensor:
    """Return positional encodings `(length, width)` (Vaswani et al. 2017)."""
    angles = torch.arange(length)[:, None] * torch.exp(
        torch.arange(0, width, 2) * (-math.log(10_000) / width)
    )
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)
