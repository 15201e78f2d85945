"""The inputs of a step: what the method sees of a batch of the shard set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from ..core import stream_seed, to_device
from ..shards import PairBatch
from .config import PretrainConfig
from .views import Views


@dataclass(frozen=True)
class StepInputs:
    """Holds the arguments of a method's forward pass, on its device.

    Args:
        views: the ordinary views, normalised images `(B, 3, H, W)` each.
        third: the synthetic view, or the control's third ordinary one; None without one. Where a step has M > 1 of
            them, `(B, M, 3, H, W)`.
        weights_B: what each sample counts in the synthetic term, or each of its M candidates, `(B, M)`; None where all
            count 1.
        labels_B: classes, -1 where there are none.
    """

    views: list[torch.Tensor]
    third: torch.Tensor | None
    weights_B: torch.Tensor | None
    labels_B: torch.Tensor

    def split(self, parts: int) -> Iterator["StepInputs"]:
        """Yield the inputs of `parts` equal parts of the batch."""
        views = [view.chunk(parts) for view in self.views]
        third = self.third.chunk(parts) if self.third is not None else [None] * parts
        weights = self.weights_B.chunk(parts) if self.weights_B is not None else [None] * parts
        labels = self.labels_B.chunk(parts)

        for part in range(parts):
            own_views = [view[part] for view in views]
            yield StepInputs(own_views, third[part], weights[part], labels[part])


class InputMaker:
    """Makes the inputs of a step; everything random is a pure function of (seed, step, rank).

    Args:
        ordinary: how many ordinary views the method takes.
        candidates: K of the set, for the share of inflated anchors.
        rank: the number of this process.
    """

    def __init__(
        self,
        config: PretrainConfig,
        views: Views,
        device: torch.device,
        ordinary: int,
        candidates: int,
        rank: int = 0,
    ):
        self.config = config
        self.views = views
        self.device = device
        self.ordinary = ordinary
        self.candidates = candidates
        self.rank = rank

    def __call__(self, step: int, batch: PairBatch) -> StepInputs:
        """Return the inputs that a batch gives at a step."""
        labels_B = to_device(batch.labels_B, self.device)

        # Ordinary views of the anchors
        anchors_BCHW = batch.anchors_BCHW
        if self.config.extra == "inflation":
            anchors_BCHW = self.inflated(step, batch)

        views = []
        for view in range(1, self.ordinary + 1):
            views.append(self.views(anchors_BCHW, view, step, self.rank))

        # The third views: of candidates, or in the control of the anchor
        if self.config.third_view == "none":
            return StepInputs(views, None, None, labels_B)

        third = self._third(step, batch)
        return StepInputs(views, third, self._weights(step, batch.weights_B), labels_B)

    def _third(self, step: int, batch: PairBatch) -> torch.Tensor:
        """Return the third view or views of a batch; their numbers go on behind the ordinary ones."""
        count = self.config.synthetic.candidates
        images: Sequence[torch.Tensor] = [batch.anchors_BCHW] * count
        if self.config.third_view == "shards":
            assert batch.candidates_BCHW is not None
            images = [batch.candidates_BCHW]
            if count > 1:  # copied to the device at once
                images = to_device(batch.candidates_BCHW, self.device).unbind(dim=1)

        thirds = []
        for view, images_BCHW in enumerate(images, start=self.ordinary + 1):
            thirds.append(self.views(images_BCHW, view, step, self.rank))

        return thirds[0] if count == 1 else torch.stack(thirds, dim=1)

    def inflated(self, step: int, batch: PairBatch) -> torch.Tensor:
        """Return the anchors, some of them replaced by a candidate (AdaInf).

        `real_weight` real images are drawn to K made ones.
        """
        assert batch.candidates_BCHW is not None
        torch.manual_seed(stream_seed(self.config.seed, step, self.rank, "inflation"))

        share = self.candidates / (self.candidates + self.config.synthetic.real_weight)
        drawn_B = torch.rand(len(batch.keys)) < share
        made_B = drawn_B & (batch.weights_B > 0)  # 0: no candidate passes the filter

        made_B111 = to_device(made_B[:, None, None, None], batch.anchors_BCHW.device)
        return torch.where(made_B111, batch.candidates_BCHW, batch.anchors_BCHW)

    def _weights(self, step: int, weights_B: torch.Tensor) -> torch.Tensor | None:
        """Return the weights, 0 where the draw of `synthetic.probability` leaves a sample out."""
        probability = self.config.synthetic.probability
        if probability < 1:
            torch.manual_seed(stream_seed(self.config.seed, step, self.rank, "synthetic"))
            takes_part = torch.rand(len(weights_B)) < probability
            if weights_B.dim() == 2:  # a sample with all its candidates
                takes_part = takes_part[:, None]
            weights_B = weights_B * takes_part

        if bool((weights_B == 1).all()):
            return None
        return to_device(weights_B, self.device)
