"""Draw contact sheets of chosen candidates: the hardest, the easiest, the most suspicious.

Shape legend: N anchors, K candidates.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from ...shards import ShardSet
from ...shards.reading.thumbnails import thumbnail, thumbnail_side
from ..quality.facts import SuspiciousPair

PAIRS = 16
PER_ROW = 8
GAP = 4
SEAM = 2
"""Pixels between the two images of a pair, which may go over into each other."""
Pair = tuple[np.ndarray, np.ndarray]


def pair_sheet(pairs: Sequence[Pair]) -> Image.Image:
    """Draw pairs of images side by side, eight to a row, small ones enlarged, large ones reduced."""
    # The side of an image, and the place that a pair takes with its gaps
    side = thumbnail_side(pairs[0][0].shape[0])
    height = side + 2 * GAP
    width = 2 * side + 3 * GAP

    # An empty sheet
    rows = -(-len(pairs) // PER_ROW)
    columns = min(PER_ROW, len(pairs))
    sheet = np.full((rows * height, columns * width, 3), 255, np.uint8)

    # The pairs, row by row
    for number, pair in enumerate(pairs):
        row, column = divmod(number, PER_ROW)
        top = row * height
        left = column * width
        for image in pair:
            sheet[top : top + side, left : left + side] = thumbnail(image)
            left += side + SEAM

    return Image.fromarray(sheet)


def extremes(shards: ShardSet, scores_NK: np.ndarray, largest: bool) -> list[Pair]:
    """Return (anchor, candidate) with the smallest or the largest scores, at most one candidate of an anchor."""
    # The best candidate of every anchor; a score that is not finite never wins
    signed_NK = -scores_NK if largest else scores_NK
    finite_NK = np.where(np.isfinite(signed_NK), signed_NK, np.inf)
    best_N = finite_NK.argmin(axis=1)

    # The anchors with the best of these
    anchors_N = np.arange(len(signed_NK))
    order = np.argsort(signed_NK[anchors_N, best_N], kind="stable")[:PAIRS]

    pairs = []
    for row in order:
        pairs.append((shards.anchor(int(row)), shards.candidate(int(row), int(best_N[row]))))

    return pairs


def copies(shards: ShardSet, suspicious: Sequence[SuspiciousPair]) -> list[Pair]:
    """Return (candidate, the anchor that it is nearest to and was not made for)."""
    pairs = []
    for entry in suspicious[:PAIRS]:
        candidate = shards.candidate(entry.position, entry.candidate)
        pairs.append((candidate, shards.anchor(entry.nearest_position)))

    return pairs
