"""Contact sheets: anchors beside their candidates, as one picture."""

import numpy as np
from PIL import Image

from .order import permutation
from .reader import ShardSet

GAP, ANCHOR_GAP, TARGET = 2, 8, 64


def contact_sheet(shards: ShardSet, rows: int = 16, seed: int = 0) -> Image.Image:
    """`rows` anchors drawn by `seed`, each (left, set apart) with its candidates, small ones enlarged."""
    chosen = np.sort(permutation(len(shards), seed, "preview")[:rows])
    scale = max(1, TARGET // shards.size)
    side = shards.size * scale
    width = ANCHOR_GAP + (side + GAP) * (shards.candidates + 1)
    sheet = np.full(((side + GAP) * len(chosen), width, 3), 255, np.uint8)
    for row, position in enumerate(map(int, chosen)):
        images = [shards.anchor(position), *(shards.candidate(position, k) for k in range(shards.candidates))]
        for column, image in enumerate(images):
            top, left = row * (side + GAP), column * (side + GAP) + ANCHOR_GAP * (column > 0)
            sheet[top : top + side, left : left + side] = image.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(sheet)
