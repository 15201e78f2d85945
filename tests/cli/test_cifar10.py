"""The cifar10 recipe on the real images, where they are at hand."""

import json

import pytest
from clsp.shards import ShardSet
from conftest import REPOSITORY, SMALL_NETWORKS, settings

CIFAR10 = REPOSITORY.parent / "shared" / "cifar10"


@pytest.mark.slow
@pytest.mark.skipif(
    not CIFAR10.is_dir(), reason="the real CIFAR-10 images are not beside the checkout"
)
def test_the_cifar10_recipe_on_real_images(clsp, tmp_path):
    """64 anchors with a U-Net of the recipe's own design (35.7 M weights), trained for two steps; every command."""
    short = {
        **SMALL_NETWORKS,
        "anchors.path": CIFAR10 / "train.parquet",
        "anchors.limit": 64,
        "diffusion.path": '""',
        "diffusion.steps": 2,
        "diffusion.batch_size": 4,
        "diffusion.workers": 0,
        "sampler.steps": 1,
        "sampler.micro_batch": 32,
        "shards.candidates": 1,
        "linear_eval.train_limit": 200,
        "linear_eval.test_limit": 100,
    }
    options = ["--recipe", "cifar10", *settings(short)]
    root, run = tmp_path / "shards", tmp_path / "run"
    evaluated = ["--checkpoint", run, "--out", run]
    for command in (
        ["diffusion", "train", *options, "--out", tmp_path / "diffusion"],
        ["shards", "plan", *options, "--seconds=0", "--out", root],
        ["shards", "make", *options, "--out", root],
        ["shards", "status", root],
        ["shards", "info", root],
        ["shards", "verify", root, "--deep"],
        ["shards", "preview", root, "--out", tmp_path / "sheet.png"],
        ["pretrain", *options, "--shards", root, "--out", run],
        ["linear-eval", *options, *evaluated],
        ["knn", *options, *evaluated],
        ["compare", run, "--out", tmp_path],
        ["report", tmp_path, "--out", tmp_path / "report.html"],
    ):
        found = clsp(*command)
        assert found.returncode == 0, f"{command}\n{found.stderr}"
    config = json.loads((tmp_path / "diffusion" / "unet" / "config.json").read_text())
    assert config["block_out_channels"] == [128, 256, 256, 256]
    assert json.loads((run / "linear.json").read_text())["set"] == ShardSet(root).set_id
