"""Find the real images that candidates are nearest to, going over the real ones a block at a time.

Shape legend: B candidates of a batch, M or N real images, F features.

Memory does not grow with the number of real images, but for their own features. The largest array made is the
product of a batch with a block, B x BLOCK cosines in float32: 2 MiB for 64 candidates (a batch on a CPU), 16 MiB for
512 (on a GPU). The real images' features, N x F in float32, lie on the encoder's device all the time: of ImageNet's
1.28 M anchors 2.6 GB with 512 features, 10.5 GB with 2048. All N x N cosines would be 6.6 TB.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

BLOCK = 8192
"""Real images that are compared with a batch of candidates at a time."""

TOLERANCE = 16 * torch.finfo(torch.float32).eps
"""What a cosine has to be larger by (1.9e-6) to count as larger.

An anchor that is in the set twice has the same cosine twice, but in two places of a product, whose sums may be
rounded in another order. Float32 rounding of a unit vector's product stays below this; a rank among anchors that are
not the same moves by those few that are so near to each other.
"""


@dataclass(frozen=True)
class Nearest:
    """Holds the cosine to the nearest image per candidate, and the place of that image: `(B,)` each."""

    cosine_B: torch.Tensor
    place_B: torch.Tensor


@dataclass(frozen=True)
class AnchorSearch:
    """Holds what the anchors say of a batch of candidates: `(B,)` each.

    >>> anchors = torch.eye(3)
    >>> found = search_anchors(torch.tensor([[0.6, 0.8, 0.0]]), anchors, own_B=torch.tensor([0]))
    >>> found.rank_B.tolist(), found.nearest.place_B.tolist()
    ([2], [1])
    """

    own_B: torch.Tensor
    """The cosine to its own anchor."""
    nearest: Nearest
    """The nearest other anchor."""
    rank_B: torch.Tensor
    """1 + the number of other anchors whose cosine is larger than its own anchor's."""

    @property
    def margin(self) -> torch.Tensor:
        """Return the cosine to the own anchor less that to the nearest other one, `(B,)`."""
        return self.own_B - self.nearest.cosine_B


class _Running:
    """Keeps the nearest image of those seen so far."""

    def __init__(self, count: int, device: torch.device):
        self.cosine_B = torch.full((count,), -torch.inf, device=device)
        self.place_B = torch.zeros(count, dtype=torch.int64, device=device)

    def add(self, cosines_BM: torch.Tensor, start: int) -> None:
        """Look at a block, whose first image is number `start`."""
        best = cosines_BM.max(dim=1)
        nearer_B = best.values > self.cosine_B
        self.cosine_B = torch.where(nearer_B, best.values, self.cosine_B)
        self.place_B = torch.where(nearer_B, best.indices + start, self.place_B)

    def nearest(self) -> Nearest:
        return Nearest(self.cosine_B.cpu(), self.place_B.cpu())


def nearest_images(unit_BF: torch.Tensor, images_MF: torch.Tensor, block: int = BLOCK) -> Nearest:
    """Find the nearest of some images, which lie as unit features on the device to compute on."""
    candidates_BF = unit_BF.to(images_MF.device)
    running = _Running(len(unit_BF), images_MF.device)

    for start, stop in _blocks(len(images_MF), 0, block):
        running.add(candidates_BF @ images_MF[start:stop].T, start)

    return running.nearest()


def search_anchors(
    unit_BF: torch.Tensor, anchors_NF: torch.Tensor, own_B: torch.Tensor, block: int = BLOCK
) -> AnchorSearch:
    """Find the nearest other anchor of each candidate, and the rank of its own one among all, in one pass over them.

    A cosine counts as larger than the own anchor's if it is so by more than `TOLERANCE`.

    Args:
        anchors_NF: unit features of all anchors, at least two, on the device to compute on.
        own_B: the place of each candidate's anchor; those of a batch lie near each other.
        block: anchors to look at at a time; more, where the batch's own ones span more.
    """
    device = anchors_NF.device
    candidates_BF = unit_BF.to(device)
    rows_B = torch.arange(len(own_B), device=device)
    running = _Running(len(own_B), device)
    larger_B = torch.zeros(len(own_B), dtype=torch.int64, device=device)

    # The batch's own anchors come in the first block, so that later ones can be compared with them
    first = int(own_B.min())
    own_columns_B = (own_B - first).to(device)
    block = max(block, int(own_B.max()) - first + 1)
    cosine_B = torch.empty(0, device=device)

    for start, stop in _blocks(len(anchors_NF), first, block):
        cosines_BM = candidates_BF @ anchors_NF[start:stop].T

        # The own cosine is taken from the product with the others, in which it then does not count
        if start == first:
            cosine_B = cosines_BM[rows_B, own_columns_B]
            cosines_BM[rows_B, own_columns_B] = -torch.inf

        running.add(cosines_BM, start)
        larger_BM = cosines_BM > (cosine_B + TOLERANCE)[:, None]
        larger_B += larger_BM.sum(dim=1)

    return AnchorSearch(cosine_B.cpu(), running.nearest(), 1 + larger_B.cpu())


def _blocks(count: int, first: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where the blocks of `count` images begin and end: from number `first` on, then those before it."""
    for begin, end in ((first, count), (0, first)):
        for start in range(begin, end, size):
            yield start, min(start + size, end)
