"""Draw contact sheets: anchors beside their candidates, as one picture."""

import math

import numpy as np
from PIL import Image, ImageDraw

from ...core import InputError, permutation
from ..sources.images import ImageSource
from .shard_set import ShardSet
from .thumbnails import LARGEST, thumbnail, thumbnail_side

GAP, ANCHOR_GAP = 2, 8
BINS = 40
PANEL = (280, 120)
MARGIN = 24


def contact_sheet(
    shards: ShardSet, rows: int = 16, seed: int = 0, largest: int = LARGEST
) -> Image.Image:
    """Show `rows` anchors drawn by `seed`, each (left, set apart) with its candidates.

    Args:
        largest: the side to which larger images are scaled down; small ones are enlarged.
    """
    chosen = np.sort(permutation(len(shards), seed, "preview")[:rows])
    side = thumbnail_side(shards.size, largest)
    width = ANCHOR_GAP + (side + GAP) * (shards.candidates + 1)
    sheet = np.full(((side + GAP) * len(chosen), width, 3), 255, np.uint8)

    for row, position in enumerate(chosen.tolist()):
        images = [shards.anchor(position)]
        for candidate in range(shards.candidates):
            images.append(shards.candidate(position, candidate))

        for column, image in enumerate(images):
            top = row * (side + GAP)
            left = column * (side + GAP) + (ANCHOR_GAP if column > 0 else 0)
            sheet[top : top + side, left : left + side] = thumbnail(image, largest)

    return Image.fromarray(sheet)


def image_sheet(images: ImageSource, rows: int = 8, columns: int = 12) -> Image.Image:
    """Show up to `rows` times `columns` images, spread evenly over a source, all at about one size."""
    places = images.spread(rows * columns)
    side = thumbnail_side(images.size) + GAP
    height = math.ceil(len(places) / columns) * side
    sheet = np.full((height, min(len(places), columns) * side, 3), 255, np.uint8)

    for number, place in enumerate(places):
        row, column = divmod(number, columns)
        image = thumbnail(images[place].image)
        top = row * side
        left = column * side
        sheet[top : top + len(image), left : left + len(image)] = image

    return Image.fromarray(sheet)


def with_histograms(sheet: Image.Image, scores: dict[str, dict[str, np.ndarray]]) -> Image.Image:
    """Draw a histogram of every measure of every score below a sheet, its range written under it."""
    panels = []
    for name, measures in scores.items():
        for measure, values in measures.items():
            panels.append(_histogram(f"{name}: {measure}", values))

    # Make room below the sheet.
    panel_width = PANEL[0] + MARGIN
    panel_height = PANEL[1] + 2 * MARGIN
    per_row = max(1, sheet.width // panel_width)
    rows = math.ceil(len(panels) / per_row)
    width = max(sheet.width, panel_width)
    whole = Image.new("RGB", (width, sheet.height + rows * panel_height), "white")
    whole.paste(sheet)

    for number, panel in enumerate(panels):
        row, column = divmod(number, per_row)
        whole.paste(panel, (column * panel_width, sheet.height + row * panel_height))

    return whole


def _histogram(title: str, values: np.ndarray) -> Image.Image:
    finite = values[np.isfinite(values)]
    if len(finite) == 0:
        raise InputError(f"scores {title}: no finite value to show")

    counts, edges = np.histogram(finite, BINS)
    panel = Image.new("RGB", (PANEL[0] + MARGIN, PANEL[1] + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(panel)
    draw.text((MARGIN // 2, 6), title, "black")
    bar = PANEL[0] // BINS
    bottom = MARGIN + PANEL[1]

    for number, count in enumerate(counts):
        left = MARGIN // 2 + number * bar
        top = bottom - round(PANEL[1] * count / counts.max())
        draw.rectangle((left, top, left + bar - 1, bottom), fill=(70, 110, 170))

    draw.text((MARGIN // 2, bottom + 4), f"{edges[0]:.4g}", "black")
    draw.text((MARGIN // 2 + PANEL[0] - 40, bottom + 4), f"{edges[-1]:.4g}", "black")

    return panel
