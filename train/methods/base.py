"""What all methods share: backbone, projector, the passes over the views, and the synthetic term."""

import abc
import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from ...shards import InputError
from ..backbone import build_backbone
from ..config import PretrainConfig
from ..losses import alignment

METHODS: dict[str, type["Method"]] = {}


def register(name: str) -> Callable[[type["Method"]], type["Method"]]:
    """Make a method known under `name`."""

    def add(method: type["Method"]) -> type["Method"]:
        METHODS[name] = method
        return method

    return add


def build_method(config: PretrainConfig) -> "Method":
    """The recipe's method with random weights.

    Raises:
        InputError: there is no method of that name.
    """
    if config.method not in METHODS:
        raise InputError(f"pretrain.method: no method {config.method!r}; there are {', '.join(sorted(METHODS))}")
    return METHODS[config.method](config)


class Method(nn.Module, abc.ABC):
    """A contrastive method: views to a dict of scalar losses.

    A subclass sets `views` and gives `base_loss`; the synthetic term is added here, the same for all.
    """

    views = 2

    def __init__(self, config: PretrainConfig):
        super().__init__()
        self.config = config
        self.backbone = build_backbone(config)
        features = int(self.backbone.num_features)  # type: ignore[arg-type]
        self.projector = nn.Sequential(
            nn.Linear(features, config.projector_hidden),
            nn.ReLU(inplace=True),
            nn.Linear(config.projector_hidden, config.projector_out),
        )

    @abc.abstractmethod
    def base_loss(self, z_BD: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """The method's own losses from the normalised projections of its views."""

    def forward(
        self, views: Sequence[torch.Tensor], third: torch.Tensor | None, weights_B: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        """Losses of a batch: the method's own and, where a third view is given, `synthetic` (before λ).

        Args:
            views: normalised images `(B, 3, H, W)`, one tensor per ordinary view.
            third: the synthetic view, or the control's third ordinary one.
            weights_B: a weight per sample in the synthetic term.
        """
        z = self._project(list(views), third)
        losses = self.base_loss(z[: self.views])
        if third is not None:
            losses["synthetic"] = alignment(z[0], z[self.views], weights_B)
        return losses

    def _project(self, views: list[torch.Tensor], third: torch.Tensor | None) -> list[torch.Tensor]:
        real = self.config.synthetic.source == "augmentation"
        if self.config.batch_norm == "joint":
            everything = [*views] if third is None else [*views, third]
            return list(self._embed(torch.cat(everything)).chunk(len(everything)))
        z = [self._embed(view) for view in views]
        if third is not None:
            with contextlib.nullcontext() if real else running_statistics_kept(self):
                z.append(self._embed(third))
        return z

    def _embed(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.projector(self.backbone(images_BCHW)), dim=1)


@contextlib.contextmanager
def running_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Batch normalisation inside the block normalises as usual but leaves its running statistics alone."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
