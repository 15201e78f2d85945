"""Crops of images that are larger than the views: against Pillow's, and against kornia's where they are not larger."""

import json

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.shards import ShardSet
from clsp.train import PretrainConfig, Views, pretrain
from clsp.train.crops import SmoothResizedCrop, crop_by_matrices, crop_one_by_one
from clsp.train.run import check_run, with_view_size
from clsp.train.views import build_augmentation
from conftest import SMALL_METHOD
from pictures import photograph
from PIL import Image

SIDE = 64


def images(count: int = 12) -> torch.Tensor:
    pixels = np.stack([photograph(number, SIDE) for number in range(count)])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def by_pillow(image_CHW: torch.Tensor, corners: torch.Tensor, size: int) -> np.ndarray:
    pil = Image.fromarray(image_CHW.permute(1, 2, 0).numpy())
    left, top = corners[0].int().tolist()
    right, bottom = corners[2].int().tolist()
    box = pil.crop((left, top, right + 1, bottom + 1))
    return np.asarray(box.resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize("crop", [crop_one_by_one, crop_by_matrices])
@pytest.mark.parametrize("size", [16, 24, 48])
def test_crops_of_larger_images_are_pillows(crop, size):
    torch.manual_seed(0)
    drawn = K.RandomResizedCrop((size, size), scale=(0.08, 1.0))
    corners = drawn.generate_parameters(torch.Size((12, 3, SIDE, SIDE)))["src"]
    photographs = images()
    found = crop(photographs.float(), corners, size).permute(0, 2, 3, 1)
    for number in range(12):
        expected = by_pillow(photographs[number], corners[number], size)
        assert np.abs(found[number].numpy() - expected).max() < 1.5


def test_kornia_alone_would_drop_pixels():
    """Stripes of one pixel are grey from afar; interpolation between the nearest pixels makes other stripes of them."""
    stripes = torch.zeros(1, 3, SIDE, SIDE)
    stripes[..., ::2] = 1
    how = {"scale": (1.0, 1.0), "ratio": (1.0, 1.0), "align_corners": False}
    plain = K.RandomResizedCrop((21, 21), **how)(stripes)
    smooth = SmoothResizedCrop((21, 21), **how)(stripes)
    assert plain.std() > 0.2
    assert (smooth - 0.5).abs().max() < 0.2


@pytest.mark.parametrize("batched", [False, True])
def test_images_of_the_views_size_are_cropped_as_before(batched):
    how = {"cropping_mode": "resample"} if batched else {"align_corners": False}
    batch = images().float() / 255
    torch.manual_seed(3)
    expected = K.RandomResizedCrop((SIDE, SIDE), scale=(0.08, 1.0), **how)(batch)
    torch.manual_seed(3)
    found = SmoothResizedCrop((SIDE, SIDE), scale=(0.08, 1.0), batched=batched, **how)(batch)
    assert torch.equal(found, expected)


def test_both_ways_make_the_same_views():
    """GPUs crop all images in one operation; the boxes and the colours are the same."""
    made = []
    for batched in (False, True):
        torch.manual_seed(5)
        augmentation = build_augmentation(PretrainConfig().augment, 24, batched)
        made.append(augmentation(images().float() / 255))
    assert made[0].shape == (12, 3, 24, 24)
    torch.testing.assert_close(made[1], made[0], atol=1e-4, rtol=0)


def test_views_have_the_size_that_is_asked_for():
    views = Views(PretrainConfig(), 24, torch.device("cpu"))
    made = views(images(), 1, 0, 0)
    assert made.shape == (12, 3, 24, 24)
    assert torch.equal(made, views(images(), 1, 0, 0))


def config(**changes) -> PretrainConfig:
    small = {"epochs": 1, "batch_size": 16, "workers": 0}
    return PretrainConfig(**{**SMALL_METHOD, **small, **changes})


def test_a_run_on_smaller_views_makes_a_backbone_for_them(shard_set, tmp_path):
    shards = ShardSet(shard_set)
    chosen = with_view_size(config(), shards, anchors_size=6)
    backbone = pretrain(shards, chosen, tmp_path / "small")
    described = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    assert described["pretrained_cfg"]["input_size"] == [3, 6, 6]
    record = json.loads((tmp_path / "small" / "run.json").read_text(encoding="utf-8"))
    assert record["pretrain"]["size"] == 6

    # The same by the key of its own; another size is another run
    assert check_run(shards, config(size=6), tmp_path / "small")
    with pytest.raises(InputError, match="pretrain.size"):
        check_run(shards, config(), tmp_path / "small")


def test_a_run_on_the_sets_size_is_recorded_as_before(shard_set):
    shards = ShardSet(shard_set)
    for anchors_size in (0, 8):
        assert with_view_size(config(), shards, anchors_size).recorded() == config().recorded()
    assert with_view_size(config(size=8), shards, 6).recorded() == config().recorded()
    assert "size" not in config().recorded()


@pytest.mark.parametrize("setting", ["anchors.size=6", "pretrain.size=6"])
def test_views_are_cut_out_of_the_images_of_the_source_too(clsp, make_set, tmp_path, setting):
    bare = make_set(tmp_path / "set", include_anchors=False)
    small = ("anchors.limit=40", "pretrain.batch_size=16", "pretrain.epochs=1", setting)
    values = [f"--set={value}" for value in small]
    run = ("pretrain", "--recipe=digits", *values, "--shards", bare, "--out", tmp_path / "run")
    found = clsp(*run)
    assert found.returncode == 0, found.stderr
    assert "views of 6 pixels, cut out of images of 8x8" in found.stdout


@pytest.mark.parametrize("setting", ["anchors.size=16", "pretrain.size=16"])
def test_views_larger_than_the_images_are_refused(clsp, shard_set, tmp_path, setting):
    run = ("pretrain", "--recipe", "digits", "--set", setting, "--shards", shard_set)
    found = clsp(*run, "--set=pretrain.batch_size=16", "--out", tmp_path / "run")
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
    assert "16 pixels" in found.stderr and "8x8" in found.stderr
    assert not (tmp_path / "run").exists()
