"""Cut crops out of images that are larger than the views, and scale them without dropping pixels.

Shape legend: B batch, C channels, H and W of the images, S side of the views.
"""

from typing import Any

import kornia.augmentation as K
import torch
from torch.nn import functional


class SmoothResizedCrop(K.RandomResizedCrop):
    """Crops as kornia does; where images are larger than the views, every pixel of a crop has its weight in the view.

    kornia interpolates between the nearest pixels alone. That is right as long as crops are enlarged, and they always
    are where images have the views' size; of a crop of three times the view's size it would drop eight pixels of nine.
    Here such images are filtered by a triangle as wide as the scale, as Pillow and `antialias=True` of torch do. The
    boxes are kornia's in any case.

    Args:
        batched: crop all images in one operation, for GPUs.
    """

    def __init__(self, *args: Any, batched: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.batched = batched

    def apply_transform(
        self,
        input: torch.Tensor,
        params: dict[str, torch.Tensor],
        flags: dict[str, Any],
        transform: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the crops of images `(B, C, H, W)`, `(B, C, S, S)`."""
        size = int(flags["size"][0])
        if max(input.shape[-2:]) <= size:
            return super().apply_transform(input, params, flags, transform)

        crop = crop_by_matrices if self.batched else crop_one_by_one
        return crop(input, params["src"], size)


def crop_one_by_one(
    images_BCHW: torch.Tensor, corners_B42: torch.Tensor, size: int
) -> torch.Tensor:
    """Cut boxes, each of its image, and scale them to `(B, C, size, size)`; the quickest way on a CPU.

    Args:
        corners_B42: of the boxes as kornia draws them: the first pixel and, third, the last one, as (x, y).
    """
    crops = []
    for image_CHW, corners in zip(images_BCHW, corners_B42.long().tolist(), strict=True):
        left, top = corners[0]
        right, bottom = corners[2]
        box_1CHW = image_CHW[None, :, top : bottom + 1, left : right + 1]
        scaled = functional.interpolate(box_1CHW, (size, size), mode="bilinear", antialias=True)
        crops.append(scaled)

    return torch.cat(crops)


def crop_by_matrices(
    images_BCHW: torch.Tensor, corners_B42: torch.Tensor, size: int
) -> torch.Tensor:
    """Return what `crop_one_by_one` does, by two matrix products for all images together."""
    height, width = images_BCHW.shape[-2:]
    corners = corners_B42.to(images_BCHW.device, images_BCHW.dtype)
    first_B2 = corners[:, 0]
    sides_B2 = corners[:, 2] - first_B2 + 1
    rows_BSH = _weights(first_B2[:, 1], sides_B2[:, 1], size, height)
    columns_BSW = _weights(first_B2[:, 0], sides_B2[:, 0], size, width)
    return rows_BSH[:, None] @ images_BCHW @ columns_BSW[:, None].transpose(-1, -2)


def _weights(first_B: torch.Tensor, lengths_B: torch.Tensor, size: int, whole: int) -> torch.Tensor:
    """Return what each pixel of a line counts in each of `size` pixels of its crop's, `(B, size, whole)`."""
    # Where the new pixels lie in the line, and the half width of the triangle around each
    scale_B1 = (lengths_B / size)[:, None]
    numbers_S = torch.arange(size, device=first_B.device, dtype=first_B.dtype)
    centres_BS = first_B[:, None] + (numbers_S + 0.5) * scale_B1
    reach_B11 = scale_B1.clamp_min(1)[:, :, None]

    # The triangle, within the crop alone
    pixels_W = torch.arange(whole, device=first_B.device, dtype=first_B.dtype) + 0.5
    distances_BSW = (pixels_W - centres_BS[:, :, None]).abs()
    is_behind_first = pixels_W > first_B[:, None]
    is_before_last = pixels_W < (first_B + lengths_B)[:, None]
    is_inside_B1W = (is_behind_first & is_before_last)[:, None]
    weights_BSW = (1 - distances_BSW / reach_B11).clamp_min(0) * is_inside_B1W

    return weights_BSW / weights_BSW.sum(dim=-1, keepdim=True)
