"""The distance of two images in the features of a frozen model (Zhang et al. 2018, without learned weights).

Shape legend: B images, C channels, H height, W width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..core import InputError

EPSILON = 1e-10
"""Added to a squared length, so that the gradient of a feature of length 0 is finite."""


class PerceptualDistance(nn.Module):
    """Measures how far images are from others in the features of a model's stages.

    With u_l(x) the features of stage l of L, each place's divided by their length,
    D(x, y) = 1/L · Σ_l mean over places |u_l(x) - u_l(y)|²: 0 to 4, whatever the model.

    Args:
        model: gives a list of feature maps `(B, C, H, W)`, or `(B, H, W, C)` where its `output_fmt` says so, for
            normalised images; as timm makes it by `features_only=True`. It is frozen.
        mean: of the values that the model was trained on, per colour, of images in [0, 1].
        std: their standard deviation.

    >>> model = nn.ModuleList([nn.Conv2d(3, 4, 1)])
    >>> model.forward = lambda images: [layer(images) for layer in model]
    >>> distance = PerceptualDistance(model, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    >>> images = torch.rand(2, 3, 8, 8) * 2 - 1
    >>> float(distance(images, images))
    0.0
    """

    mean_C11: torch.Tensor
    std_C11: torch.Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.is_channels_last = getattr(model, "output_fmt", "NCHW") == "NHWC"
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None])
        self.register_buffer("std_C11", torch.tensor(std)[:, None, None])

    def forward(self, images_BCHW: torch.Tensor, others_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the mean distance `()` of images in [-1, 1] from others, which get no gradient."""
        found = self._features(images_BCHW)
        with torch.no_grad():
            expected = self._features(others_BCHW)

        distances = []
        for one, other in zip(found, expected, strict=True):
            squares_BHW = (one - other).square().sum(dim=1)
            distances.append(squares_BHW.mean())

        return torch.stack(distances).mean()

    def _features(self, images_BCHW: torch.Tensor) -> list[torch.Tensor]:
        """Return each stage's features `(B, C, H, W)` float32, of length 1 at each place."""
        normalised = ((images_BCHW + 1) / 2 - self.mean_C11) / self.std_C11
        stages: Any = self.model(normalised)

        units = []
        for stage in stages:
            if stage.dim() != 4:
                raise ValueError(f"gives {tuple(stage.shape)}, expected maps of features")

            features = stage.movedim(-1, 1) if self.is_channels_last else stage
            features = features.float()
            length = (features.square().sum(dim=1, keepdim=True) + EPSILON).sqrt()
            units.append(features / length)

        return units


def check_perceptual(distance: PerceptualDistance, name: str, size: int) -> None:
    """Send a blank image through the model of `autoencoder.perceptual`.

    Args:
        size: of the anchors, in pixels.

    Raises:
        InputError: it does not take images of this size, or gives no feature maps.
    """
    blank = torch.zeros(1, 3, size, size)
    try:
        distance(blank, blank)
    except Exception as error:  # a size that does not fit shows anywhere inside of a model
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"autoencoder.perceptual = {name} does not take images of {size} pixels ({reason}); "
            "use a convolutional model, or another anchors.size"
        ) from error
