"""Standardise features: mean 0 and deviation 1 on the training images.

Shape legend: N training images, M others, F features.
"""

from dataclasses import dataclass

import torch

from ..features.extract import Features


@dataclass(frozen=True)
class Standardised:
    """Holds features with mean 0 and deviation 1, and what was subtracted and divided by `(F,)`.

    >>> features = Features(torch.tensor([[1.0], [3.0]]), None, torch.tensor([0, 1]))
    >>> standardised(features).apply(torch.tensor([[2.0]]))
    tensor([[0.]])
    """

    features: Features
    mean_F: torch.Tensor
    std_F: torch.Tensor

    def apply(self, others_MF: torch.Tensor) -> torch.Tensor:
        """Subtract and divide by the same in other features."""
        return (others_MF - self.mean_F) / self.std_F


def standardised(features: Features) -> Standardised:
    """Return the features with mean 0 and deviation 1: learning rates then carry over from one backbone to another."""
    mean_F = features.plain_NF.mean(dim=0)
    std_F = features.plain_NF.std(dim=0)
    # A channel that is constant on train may not be so elsewhere
    std_F = torch.where(std_F < 1e-6, 1.0, std_F)

    plain_NF = (features.plain_NF - mean_F) / std_F
    flipped_NF = features.flipped_NF
    if flipped_NF is not None:
        flipped_NF = (flipped_NF - mean_F) / std_F

    return Standardised(Features(plain_NF, flipped_NF, features.labels_N), mean_F, std_F)
