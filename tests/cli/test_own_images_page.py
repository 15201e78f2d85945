"""Every command of docs/own-images.md, word for word but for the sizes, on images that are made here."""

import json

import numpy as np
import pytest
from clsp.shards import AnchorsConfig, ShardSet
from conftest import REPOSITORY, SMALL_NETWORKS, settings
from pictures import BLUE, RED, put
from PIL import Image
from test_docs import commands, write_recipes

PAGE = REPOSITORY / "docs" / "own-images.md"

SMALL = {
    **SMALL_NETWORKS,
    "anchors.size": 8,
    "diffusion.channels": "[32,32]",
    "diffusion.attention": "[false,false]",
    "diffusion.blocks": 1,
    "shards.candidates": 1,
    "shards.records": 16,
    "linear_eval.labels": "[1,5,0.1]",
}

SMALL_LATENTS = {
    **SMALL,
    "autoencoder.channels": "[8,16]",
    "autoencoder.norm_groups": 8,
    "autoencoder.blocks": 1,
    "autoencoder.steps": 2,
    "autoencoder.batch_size": 4,
    "autoencoder.workers": 0,
    "autoencoder.precision": "no",
    "diffusion.precision": "no",
    "diffusion.workers": 0,
    "shards.megabytes": 0,
    "pretrain.size": 0,
    "pretrain.backbone": "resnet18",
}
"""The same for the recipe of 256 pixels, whose latents are a half of 8 wide here."""


@pytest.fixture
def photos(tmp_path):
    """Photos as people have them: wide and upright, two classes, a caption beside one, one with alpha."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name, colour in (("cats", RED), ("dogs", BLUE)):
            for number in range(count):
                shape = (12, 16) if number % 2 else (16, 12)
                noise = rng.integers(0, 60, (*shape, 3))
                image = Image.fromarray(np.uint8(np.clip(np.array(colour) - noise, 0, 255)))
                if number == 3:
                    image.putalpha(128)
                suffix = "png" if number == 3 else "JPG"
                put(tmp_path / "photos" / split / name / f"{number}.{suffix}", image)
    (tmp_path / "photos" / "train" / "cats" / "0.txt").write_text("a cat")
    return tmp_path / "photos"


@pytest.mark.slow
def test_from_images_to_a_probe(clsp, monkeypatch, photos, tmp_path):
    monkeypatch.chdir(tmp_path)
    write_recipes(PAGE, tmp_path)
    words_of_all = commands(PAGE)

    for words in words_of_all:
        small = SMALL_LATENTS if "folder-256" in words else SMALL
        if words[0] == "images":
            small = {"anchors.size": 8}
        takes_settings = "--recipe" in words
        found = clsp(*words, *(settings(small) if takes_settings else []))
        if "anchors.layout=classes" in words:  # what somebody would try who has a class «train»
            assert found.returncode == 0 and "test 8, train 24" in found.stdout
            continue
        assert found.returncode == 0, f"{words}\n{found.stdout}{found.stderr}"

    # What they made
    source = ShardSet(tmp_path / "runs" / "photos" / "shards").plan.source
    assert (source.count, source.size, source.classes) == (24, 8, ["cats", "dogs"])
    assert source.background == "#ffffff"
    for name in ("simclr+shards-s0", "simclr+augmentation-s0"):
        path = tmp_path / "runs" / "photos" / "pretrain" / name / "linear.json"
        result = json.loads(path.read_text())["result"]
        assert {"top1", "labels_1", "labels_5", "labels_0.1"} <= set(result)
    report = (tmp_path / "runs" / "photos" / "report.html").read_text()
    assert "2: cats, dogs" in report and "background #ffffff" in report

    # What the recipe of large images made, by way of latents
    plan = ShardSet(tmp_path / "runs" / "folder-256" / "shards").plan
    assert (plan.shards.codec, plan.source.count) == ("webp-90", 24)
    assert plan.diffusion.latent is not None
    assert (tmp_path / "runs/folder-256/pretrain/simclr+shards-s0/linear.json").exists()

    # Which commands those were
    verbs = {" ".join(word for word in words[:2] if word.islower()) for words in words_of_all}
    assert len(words_of_all) == 19 and {"images photos", "diffusion train", "shards make"} <= verbs


def test_the_page_names_every_key_of_the_section():
    text = PAGE.read_text()
    keys = set(AnchorsConfig.model_fields) - {"limit"}
    assert {key for key in keys if f"anchors.{key}" in text} == keys
