"""Contact sheets of chosen candidates: the hardest, the easiest, the most suspicious.

Shape legend: N anchors, K candidates.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ...shards import ShardSet

PAIRS = 16
PER_ROW = 8
TARGET = 64
GAP = 4
Pair = tuple[np.ndarray, np.ndarray]


def pair_sheet(pairs: Sequence[Pair]) -> Image.Image:
    """Pairs of images side by side, eight to a row, small ones enlarged."""
    size = pairs[0][0].shape[0]
    scale = max(1, TARGET // size)
    side = size * scale
    rows = -(-len(pairs) // PER_ROW)
    columns = min(PER_ROW, len(pairs))
    sheet = np.full((rows * (side + 2 * GAP), columns * (2 * side + 3 * GAP), 3), 255, np.uint8)

    for number, pair in enumerate(pairs):
        row, column = divmod(number, PER_ROW)
        top = row * (side + 2 * GAP)
        left = column * (2 * side + 3 * GAP)
        both = np.concatenate(pair, axis=1).repeat(scale, axis=0).repeat(scale, axis=1)
        sheet[top : top + side, left : left + 2 * side] = both

    return Image.fromarray(sheet)


def extremes(shards: ShardSet, scores_NK: np.ndarray, largest: bool) -> list[Pair]:
    """(anchor, candidate) with the smallest or the largest scores, at most one candidate of an anchor."""
    signed = -scores_NK if largest else scores_NK
    best_N = np.where(np.isfinite(signed), signed, np.inf).argmin(axis=1)
    order = np.argsort(signed[np.arange(len(signed)), best_N], kind="stable")[:PAIRS]
    return [
        (shards.anchor(int(row)), shards.candidate(int(row), int(best_N[row]))) for row in order
    ]


def copies(shards: ShardSet, suspicious: Sequence[dict[str, Any]]) -> list[Pair]:
    """(candidate, the anchor that it is nearest to and was not made for)."""
    return [
        (
            shards.candidate(entry["position"], entry["candidate"]),
            shards.anchor(entry["nearest_position"]),
        )
        for entry in suspicious[:PAIRS]
    ]
