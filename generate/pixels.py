"""Pixels to the range of the diffusion model, and back."""

import numpy as np
import torch


def to_model_range(images_BHWC: np.ndarray) -> torch.Tensor:
    """Turn uint8 `(B, H, W, C)` into float32 `(B, C, H, W)` in [-1, 1]."""
    return torch.from_numpy(np.array(images_BHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_uint8(x: torch.Tensor) -> np.ndarray:
    """Turn floats `(…, C, H, W)` in [-1, 1] (clipped) into uint8 `(…, H, W, C)`, rounded to the nearest level."""
    return (
        ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).movedim(-3, -1).contiguous().numpy()
    )
