"""The common part of all methods: backbone, projector, the passes over the views, and the synthetic term."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import nn

from ..backbone import build_backbone, feature_width, load_initial
from ..config import PretrainConfig
from ..health import Embeddings
from ..synthetic_term import synthetic_term


class Method(nn.Module, abc.ABC):
    """Turns views into a dict of scalar losses; the common part of all methods.

    A subclass gives `base_loss`; the synthetic term is added here, the same for all: between the projections of view 1
    and the synthetic views, before any predictor. The decorator `register` makes a subclass known by a name.

    >>> from clsp.train.example import example_config
    >>> class Invariance(Method):
    ...     def base_loss(self, y_BD, views, labels_B):
    ...         return {"invariance": (y_BD[0] - y_BD[1]).square().mean()}
    >>> method = Invariance(example_config())
    >>> view1, view2, synthetic = torch.randn(3, 4, 3, 8, 8)
    >>> labels_B = torch.tensor([0, 0, 1, 1])
    >>> sorted(method([view1, view2], synthetic, None, labels_B))
    ['invariance', 'synthetic']
    """

    views = 2
    needs_labels = False
    has_momentum = False
    """True for a method with an encoder that follows the other by `momentum_start` … `momentum_end`."""
    norm_behind_projector = True
    """With `projector_norm`: True if the projector's last layer is normalised, too."""
    has_decoupled_loss = False
    """True for a method that knows `decoupled`."""

    def __init__(self, config: PretrainConfig):
        super().__init__()
        self.config = config
        self.keeps_embeddings = False
        self.embeddings: list[Embeddings] = []
        self.backbone = build_backbone(config)
        if config.init:
            load_initial(self.backbone, config.init)

        features = feature_width(self.backbone)
        hidden = [config.projector_hidden] * (config.projector_layers - 1)
        norm = config.head_norm if config.projector_norm else None
        self.projector = mlp(
            [features, *hidden, config.projector_out], norm, self.norm_behind_projector
        )

    @abc.abstractmethod
    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return the method's own losses.

        Args:
            y_BD: projections of its views, not normalised.
            views: the images themselves, `(B, 3, H, W)`, for another encoder.
            labels_B: classes, -1 where there are none.
        """

    def before_step(self, step: int, steps: int) -> None:
        """Prepare a step; called before each optimisation step with its number and how many there will be."""

    def forward(
        self,
        views: Sequence[torch.Tensor],
        third: torch.Tensor | None,
        weights_B: torch.Tensor | None,
        labels_B: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Return the losses of a batch: the method's own and, where a third view is given, `synthetic` (before λ).

        Args:
            views: normalised images `(B, 3, H, W)`, one tensor per ordinary view.
            third: the synthetic view, or the control's third ordinary one; of several `(B, M, 3, H, W)`.
            weights_B: a weight per sample in the synthetic term; of several third views also `(B, M)`.
            labels_B: classes, -1 where there are none.
        """
        thirds: Sequence[torch.Tensor] = []
        if third is not None:
            thirds = third.unbind(dim=1) if third.dim() == 5 else [third]

        # The projections, of some steps kept to be looked at
        y_BD = self._project(views, thirds)
        own_BD = y_BD[: self.views]
        if self.keeps_embeddings:
            positive_BD = y_BD[self.views] if thirds else y_BD[1]
            self.embeddings.append(Embeddings(y_BD[0].detach(), positive_BD.detach()))

        # The method's own
        losses = self.base_loss(own_BD, views, labels_B)

        # The synthetic term
        if thirds:
            thirds_BD = y_BD[self.views :]
            losses["synthetic"] = synthetic_term(self.config, own_BD, thirds_BD, weights_B)

        return losses

    def passed(self, module: Callable[[torch.Tensor], torch.Tensor], parts: Sequence[torch.Tensor]):
        """Send each part through a module: together or one after the other, as `batch_norm` says."""
        if self.config.batch_norm == "joint":
            return list(module(torch.cat(list(parts))).chunk(len(parts)))
        return [module(part) for part in parts]

    def _project(
        self, views: Sequence[torch.Tensor], thirds: Sequence[torch.Tensor]
    ) -> list[torch.Tensor]:
        # One pass over all views
        if self.config.batch_norm == "joint":
            return self.passed(self._embed, [*views, *thirds])

        # A pass each, running statistics from real views only
        y_BD = self.passed(self._embed, views)
        real = self.config.synthetic.source == "augmentation"
        with contextlib.nullcontext() if real or not thirds else running_statistics_kept(self):
            y_BD += self.passed(self._embed, thirds)

        return y_BD

    def _embed(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.projector(self.backbone(images_BCHW))


def mlp(widths: Sequence[int], norm: str | None, norm_last: bool = False) -> nn.Sequential:
    """Build linear layers with ReLU between them, each hidden one normalised by `norm` (`batch`, `layer` or None)."""
    layers: list[nn.Module] = []
    for place, (before, after) in enumerate(pairwise(widths), start=2):
        layers.append(nn.Linear(before, after))
        last = place == len(widths)
        if norm and (norm_last or not last):
            layers.append(nn.BatchNorm1d(after) if norm == "batch" else nn.LayerNorm(after))
        if not last:
            layers.append(nn.ReLU(inplace=True))

    return nn.Sequential(*layers)


@contextlib.contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let batch normalisation inside the block normalise as usual but leave its running statistics alone."""
    layers = [
        layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [layer.momentum for layer in layers]

    for layer in layers:
        layer.momentum = 0.0

    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
