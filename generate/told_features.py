"""What a diffusion model is told of an anchor, where its classes are the anchors' own features.

Shape legend: N anchors of the training, B of a micro-batch, E width of the U-Net's class embedding, F features.
"""

import copy
from typing import Any, cast

import numpy as np
import torch
from diffusers import UNet2DModel

ROWS = 65_536
"""Rows of a class embedding that are looked at together."""


def tell_features(unet: UNet2DModel, unit_NF: np.ndarray | None, seed: int) -> None:
    """Give a U-Net the features of its anchors as its class embedding, which no training changes any more.

    They are brought to the embedding's width by random directions (Johnson and Lindenstrauss, 1984), so that every
    value has a variance of about 1, as the rows of a new embedding have. «No class», the last row, is 0.

    Args:
        unit_NF: the anchors' features of length 1, in the order of their classes; None where a checkpoint, which is
            loaded afterwards, has them.
    """
    rows = class_rows(unet)
    rows.requires_grad_(False)
    if unit_NF is None:
        return

    generator = np.random.default_rng(seed)
    directions_FE = generator.standard_normal((unit_NF.shape[1], rows.shape[1]), np.float32)
    with torch.no_grad():
        rows[:-1] = torch.from_numpy(unit_NF @ directions_FE)
        rows[-1] = 0


def class_rows(unet: UNet2DModel) -> torch.Tensor:
    """Return the rows of a U-Net's class embedding, `(N + 1, E)`, of which the last is «no class»."""
    return cast(Any, unet).class_embedding.weight


def without_class_embedding(unet: UNet2DModel) -> UNet2DModel:
    """Return a U-Net whose `class_labels` are rows of an embedding, `(B, E)` float; it shares all other parts."""
    other = copy.copy(unet)
    other._modules = {**unet._modules, "class_embedding": torch.nn.Identity()}
    return other


class ToldFeatures:
    """Computes what a model is told of its anchors: their own features, or others in the place of these.

    >>> rows_NE = torch.tensor([[3.0, 0.0], [0.0, 3.0], [1.0, 2.0], [0.0, 0.0]])
    >>> told = ToldFeatures(rows_NE, neighbours=1)
    >>> told(torch.tensor([0, 1]))
    tensor([[1.3416, 2.6833],
            [1.3416, 2.6833]])

    Args:
        rows_NE: the class embedding `(N + 1, E)` float32, of which the last row is «no class».
        directions: tell the first principal components of the anchors' rows only, so many; along all others the mean
            of them is told. 0, or the embedding's width and more: all.
        neighbours: tell the mean of so many anchors whose rows have the largest cosine to the anchor's own, which is
            left out, at its own length; 0: the anchor's own. Where there are fewer others, all of them.
    """

    def __init__(self, rows_NE: torch.Tensor, directions: int = 0, neighbours: int = 0):
        rows_NE = rows_NE.detach()
        self.anchors_NE = rows_NE[:-1]
        self.none_E = rows_NE[-1]
        self.neighbours = min(neighbours, len(self.anchors_NE) - 1)
        self.projection: tuple[torch.Tensor, torch.Tensor] | None = None

        if self.neighbours:
            self.lengths_N = torch.linalg.vector_norm(self.anchors_NE, dim=1).clamp(min=1e-12)
        if directions:
            self.projection = self._principal(directions)

    def __call__(self, classes_B: torch.Tensor) -> torch.Tensor:
        """Return what is told `(B, E)` float32 of anchors, by their classes `(B,)` int64."""
        told_BE = self.anchors_NE[classes_B]

        if self.neighbours:
            told_BE = self._mean_of_nearest(classes_B, told_BE)

        if self.projection:
            mean_E, onto_EE = self.projection
            told_BE = (mean_E + (told_BE.double() - mean_E) @ onto_EE).float()

        return told_BE

    def _mean_of_nearest(self, classes_B: torch.Tensor, own_BE: torch.Tensor) -> torch.Tensor:
        """Return the mean of the most similar other anchors' rows, `(B, E)`, at the length of the anchors' own."""
        places_BM = self._nearest(classes_B, own_BE)
        mean_BE = self.anchors_NE[places_BM].mean(dim=1)
        length_B1 = self.lengths_N[classes_B, None]
        return torch.nn.functional.normalize(mean_BE, dim=1) * length_B1

    def _nearest(self, classes_B: torch.Tensor, own_BE: torch.Tensor) -> torch.Tensor:
        """Return the places `(B, M)` of the most similar other anchors, a block of anchors at a time."""
        device = own_BE.device
        best_BM = torch.empty(len(own_BE), 0, device=device)
        places_BM = torch.empty(len(own_BE), 0, dtype=torch.int64, device=device)

        for start, block in self._blocks():
            # Cosines to the block, times the length of the own row, which changes no order
            places_R = torch.arange(start, start + len(block), device=device)
            cosines_BR = own_BE @ block.T / self.lengths_N[places_R]

            # Never itself
            is_itself_BR = places_R == classes_B[:, None]
            cosines_BR.masked_fill_(is_itself_BR, -torch.inf)

            # The best of these and of the blocks before
            best_BM = torch.cat([best_BM, cosines_BR], dim=1)
            places_BM = torch.cat([places_BM, places_R.expand_as(cosines_BR)], dim=1)
            count = min(self.neighbours, best_BM.shape[1])
            best_BM, chosen_BM = best_BM.topk(count, dim=1)
            places_BM = places_BM.gather(1, chosen_BM)

        return places_BM

    def _principal(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean of the anchors' rows `(E,)` and the projection on their first components `(E, E)`."""
        # A block of rows at a time
        sums = [block.double().sum(dim=0) for _, block in self._blocks()]
        mean_E = torch.stack(sums).sum(dim=0) / len(self.anchors_NE)

        scatter_EE = torch.zeros_like(mean_E).repeat(len(mean_E), 1)
        for _, block in self._blocks():
            centred_RE = block.double() - mean_E
            scatter_EE += centred_RE.T @ centred_RE

        # eigh sorts by ascending variance
        _, directions_EE = torch.linalg.eigh(scatter_EE)
        kept_ED = directions_EE[:, -count:]
        return mean_E, kept_ED @ kept_ED.T

    def _blocks(self) -> list[tuple[int, torch.Tensor]]:
        """Return the anchors' rows in blocks `(R, E)`, each with the place of its first row."""
        blocks = self.anchors_NE.split(ROWS)
        return [(number * ROWS, block) for number, block in enumerate(blocks)]
