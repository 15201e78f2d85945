"""Images smaller than `anchors.size`: a note where they are few, a refusal where they are most."""

import numpy as np
import pytest
from clsp.shards import read_manifest
from clsp.shards.sources.enlarging import count_smaller, usual_side
from conftest import save_random_model, settings
from pictures import opened, photograph, put
from PIL import Image

SMALL = {
    "anchors.split": "train",
    "anchors.limit": 0,
    "anchors.size": 16,
    "sampler.steps": 1,
    "sampler.micro_batch": 4,
    "shards.candidates": 1,
}


@pytest.fixture
def folder(tmp_path):
    """A function that saves images of these shapes (width, height), numbered, and returns their folder."""

    def fill(*shapes: tuple[int, int]):
        for number, shape in enumerate(shapes):
            image = Image.fromarray(photograph(number, 64)).resize(shape)
            put(tmp_path / "photos" / f"{number:02d}.png", image)
        return tmp_path / "photos"

    return fill


@pytest.fixture(scope="module")
def model_of_16(tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("model"), 16)


@pytest.fixture
def make(clsp, model_of_16, tmp_path):
    def run(photos, **more):
        values = settings({"anchors.path": photos, **SMALL, **more})
        source = ("--recipe=digits", *values, "--diffusion", model_of_16)
        return clsp("shards", "make", *source, "--out", tmp_path / "set")

    return run


LARGE, WIDE, TINY = (20, 20), (40, 12), (8, 30)


def test_most_images_smaller_are_refused_by_name(make, folder, tmp_path):
    found = make(folder(LARGE, WIDE, TINY, TINY))
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
    expected = (
        "01.png has 40x12 pixels, and so have 3 of 4 images fewer than anchors.size = 16; set anchors.size=12, which "
        "half of them have, or anchors.upscale=true to enlarge them"
    )
    assert expected in found.stderr
    assert not (tmp_path / "set").exists()


def test_they_are_taken_where_the_recipe_says_so(make, folder, tmp_path):
    found = make(folder(LARGE, WIDE, TINY, TINY), **{"anchors.upscale": "true"})
    assert found.returncode == 0, found.stderr
    assert "note: 3 of 4 images are smaller than anchors.size = 16 and are enlarged" in found.stdout
    plan = (tmp_path / "set" / "plan.json").read_text(encoding="utf-8")
    assert "upscale" not in plan  # which says nothing of pixels
    assert read_manifest(tmp_path / "set").candidates == 1


def test_a_few_small_ones_are_told_and_taken(make, folder):
    found = make(folder(LARGE, LARGE, WIDE, TINY))
    assert found.returncode == 0, found.stderr
    assert "note: 2 of 4 images are smaller than anchors.size = 16" in found.stdout
    assert "the smallest side has 8 pixels" in found.stdout


def test_of_very_many_sizes_those_that_were_counted_are_told(make, folder, monkeypatch):
    monkeypatch.setattr("clsp.shards.sources.survey.MOST_SIZES", 2)
    found = make(folder(LARGE, WIDE, TINY, TINY))
    assert found.returncode == 0, found.stderr
    assert "note: 1 of 2 images are smaller than anchors.size = 16" in found.stdout


def test_images_of_the_size_are_no_news(make, folder):
    found = make(folder((16, 16), (16, 90), LARGE))
    assert found.returncode == 0 and "smaller" not in found.stdout, found.stderr


def test_the_embedded_digits_may_be_enlarged(clsp, model_of_16, tmp_path):
    values = settings({**SMALL, "anchors.limit": 8})
    found = clsp(
        *("shards", "make", "--recipe=digits", *values),
        *("--diffusion", model_of_16, "--out", tmp_path / "set"),
    )
    assert found.returncode == 0, found.stderr


def test_a_diffusion_model_and_an_import_are_refused_too(clsp, folder, tmp_path):
    photos = folder(LARGE, WIDE, TINY, TINY)
    values = ("--recipe=digits", *settings({"anchors.path": photos, **SMALL}))
    np.save(tmp_path / "x.npy", np.zeros((4, 1, 16, 16, 3), np.uint8))
    for command in (
        ("diffusion", "train", *values, "--out", tmp_path / "model"),
        ("shards", "import-npy", tmp_path / "x.npy", *values, "--out", tmp_path / "set"),
    ):
        found = clsp(*command)
        assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
        assert "01.png has 40x12 pixels" in found.stderr
    assert not (tmp_path / "model").exists() and not (tmp_path / "set").exists()


def test_clsp_images_tells_where_a_size_is_wanted(clsp, folder):
    photos = folder(LARGE, WIDE, TINY, TINY)
    found = clsp("images", photos, "--set=anchors.size=16")
    assert found.returncode == 0 and "3 of 4 images fewer than anchors.size = 16" in found.stdout
    found = clsp("images", photos)
    assert found.returncode == 0 and "smaller" not in found.stdout and "fewer" not in found.stdout


@pytest.mark.parametrize(
    ("shapes", "side"), [([LARGE], 20), ([LARGE, TINY], 20), ([LARGE, WIDE, TINY], 12), ([TINY], 8)]
)
def test_sides_are_counted(folder, shapes, side):
    findings = opened(folder(*shapes), size=16).findings
    assert usual_side(findings) == side
    assert count_smaller(findings, 16) == sum(min(shape) < 16 for shape in shapes)
    assert count_smaller(findings, 0) == 0
