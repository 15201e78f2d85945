"""One optimisation step: from a batch of the shard set to the losses."""

from contextlib import nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..core import stream_seed
from ..shards import BatchOrder, PairBatch
from .config import PretrainConfig
from .methods import Method
from .schedule import learning_rate, synthetic_weight
from .views import Views


class NotFiniteError(Exception):
    """A loss that is not finite; the argument is its value."""


class Stepper:
    """Views, losses, gradients and the optimizer of one step at a time; everything random comes from the step's number.

    Args:
        method: the method itself, `model` what accelerate made of it.
        candidates: K of the set, for the share of inflated anchors.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: PretrainConfig,
        order: BatchOrder,
        views: Views,
        candidates: int,
    ):
        self.accelerator = accelerator
        self.method = method
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.views = views
        self.candidates = candidates
        self.per_epoch = order.batches_per_epoch
        self.steps = order.batches_per_epoch * config.epochs
        self.rate = 0.0

    def run(self, step: int, batch: PairBatch) -> dict[str, torch.Tensor]:
        """Do a step; returns the losses of this rank's batch, `loss` the one that was minimised.

        Raises:
            NotFiniteError: before the optimizer's step.
        """
        self.method.before_step(step, self.steps)
        self.rate = learning_rate(step, self.per_epoch, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate

        views, third, weights = self._inputs(step, batch)
        labels = batch.labels_B.to(self.accelerator.device)
        torch.manual_seed(
            stream_seed(self.config.seed, step, self.accelerator.process_index, "model")
        )
        sums: dict[str, torch.Tensor] = {}
        parts = self.config.accumulation
        split: Any = [self._split(tensor) for tensor in (*views, third, weights, labels)]

        for number, (*images, third_part, weights_part, labels_part) in enumerate(
            zip(*split, strict=True), start=1
        ):
            with self.accelerator.no_sync(self.model) if number < parts else nullcontext():
                losses = self._losses(step, images, third_part, weights_part, labels_part)
                self.accelerator.backward(losses["loss"] / parts)
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts

        self.optimizer.step()
        self.optimizer.zero_grad()

        return sums

    def _split(self, tensor: torch.Tensor | None) -> list[Any]:
        parts = self.config.accumulation
        return [None] * parts if tensor is None else list(tensor.chunk(parts))

    def _losses(self, step: int, images, third, weights, labels) -> dict[str, torch.Tensor]:
        with self.accelerator.autocast():
            losses = self.model(images, third, weights, labels)
        factor = synthetic_weight(step, self.per_epoch, self.config)
        loss: Any = sum(
            value * (factor if name == "synthetic" else 1.0) for name, value in losses.items()
        )
        if not torch.isfinite(loss):
            raise NotFiniteError(loss.item())
        return {"loss": loss, **losses}

    def _inputs(self, step: int, batch: PairBatch):
        """The ordinary views, the third one or None, and its samples' weights or None."""
        rank = self.accelerator.process_index
        ordinary = self.method.views
        anchors = (
            self._inflated(step, batch) if self.config.extra == "inflation" else batch.anchors_BCHW
        )
        views = [self.views(anchors, view, step, rank) for view in range(1, ordinary + 1)]
        if self.config.third_view == "none":
            return views, None, None

        images = batch.candidates_BCHW if self.config.third_view == "shards" else batch.anchors_BCHW
        assert images is not None
        third = self.views(images, ordinary + 1, step, rank)

        return views, third, self._weights(step, batch.weights_B)

    def _inflated(self, step: int, batch: PairBatch) -> torch.Tensor:
        """Anchors, some of them replaced by a candidate: `real_weight` real images to K made ones (AdaInf)."""
        assert batch.candidates_BCHW is not None
        torch.manual_seed(
            stream_seed(self.config.seed, step, self.accelerator.process_index, "inflation")
        )
        share = self.candidates / (self.candidates + self.config.synthetic.real_weight)
        made = (torch.rand(len(batch.keys)) < share) & (
            batch.weights_B > 0
        )  # 0: no candidate passes the filter
        return torch.where(made[:, None, None, None], batch.candidates_BCHW, batch.anchors_BCHW)

    def _weights(self, step: int, weights_B: torch.Tensor) -> torch.Tensor | None:
        """Each sample's weight, 0 where the draw of `synthetic.probability` leaves it out; None where all are 1."""
        if self.config.synthetic.probability < 1:
            torch.manual_seed(
                stream_seed(self.config.seed, step, self.accelerator.process_index, "synthetic")
            )
            weights_B = weights_B * (torch.rand(len(weights_B)) < self.config.synthetic.probability)
        return None if bool((weights_B == 1).all()) else weights_B.to(self.accelerator.device)
