"""Pictures of sets of any size: small images to the pixel, large ones scaled down."""

import base64
import io
import re

import numpy as np
import pytest
from clsp.cli.main import run
from clsp.evaluate.report.page import _image
from clsp.evaluate.report.sheets import pair_sheet
from clsp.shards import ShardSet, contact_sheet
from clsp.shards.reading.contact_sheet import image_sheet
from clsp.shards.reading.thumbnails import thumbnail, thumbnail_side
from pictures import opened, photograph, put
from PIL import Image


@pytest.mark.parametrize(
    ("size", "side"), [(8, 64), (28, 56), (32, 64), (64, 64), (96, 96), (97, 96), (256, 96)]
)
def test_images_are_shown_at_about_one_size(size, side):
    image = photograph(3, size)
    shown = thumbnail(image)
    assert thumbnail_side(size) == side and shown.shape == (side, side, 3)
    if size <= side:
        assert np.array_equal(shown[:: side // size, :: side // size], image)
    else:  # the colours of its quarters, averaged by hand
        for rows in (slice(None, None, 2), slice(1, None, 2)):
            assert np.abs(shown[rows].mean((0, 1)) - image.mean((0, 1))).max() < 4


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for number in range(6):
        put(folder / f"{number}.png", Image.fromarray(photograph(number, 160)))
    return folder


@pytest.fixture(scope="module")
def shards(photographs, tmp_path_factory):
    """Six photographs of 160x160 with two others as candidates of each."""
    folder = tmp_path_factory.mktemp("set")
    images = np.stack([anchor.image for anchor in opened(photographs)])
    np.save(folder / "x.npy", np.stack([np.roll(images, 1, 0), np.roll(images, 2, 0)], axis=1))
    source = (f"--set=anchors.path={photographs}", "--set=shards.codec=jpeg-95")
    common = ("--recipe=digits", "--set=anchors.split=train", *source)
    arguments = ("shards", "import-npy", folder / "x.npy", *common, "--out", folder / "set")
    assert run([str(argument) for argument in arguments]) == 0
    return ShardSet(folder / "set")


def test_sheets_of_large_images_stay_small(shards, photographs):
    sheet = contact_sheet(shards, rows=4)
    assert sheet.width < 4 * 100 and sheet.height < 4 * 100
    full = contact_sheet(shards, rows=2, largest=160)
    anchor = np.asarray(full)[:160, :160]
    assert any(np.array_equal(anchor, shards.anchor(position)) for position in range(6))
    assert image_sheet(opened(photographs)).width <= 12 * 98
    pairs = [(shards.anchor(position), shards.candidate(position, 0)) for position in range(6)]
    assert pair_sheet(pairs).size == (6 * (2 * 96 + 12), 96 + 8)


def test_the_page_holds_photographs_in_few_bytes(shards):
    sheet = contact_sheet(shards, rows=6)
    address = _image("title", "note", sheet, shards.size).address
    kind, content = re.fullmatch(r"data:image/(\w+);base64,(.+)", address).groups()
    with Image.open(io.BytesIO(base64.b64decode(content))) as image:
        assert (kind, image.format) == ("jpeg", "JPEG") and image.size == sheet.size
    assert len(address) < 6 * 3 * 96 * 96 * 3 / 4
    assert _image("title", "note", sheet, 32).address.startswith("data:image/png;")


def test_preview_takes_a_size(clsp, shards, tmp_path):
    for largest, width in ((96, 8 + 3 * 98), (160, 8 + 3 * 162)):
        out = tmp_path / f"{largest}.png"
        found = clsp("shards", "preview", shards.root, "--out", out, f"--largest={largest}")
        assert found.returncode == 0, found.stderr
        with Image.open(out) as image:
            assert image.width == width
