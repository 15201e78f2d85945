"""A disk that is full, which `ulimit -f` imitates: one line, exit code 1, and what was saved before stays."""

import pytest
from clsp.cli.main import FAILED
from conftest import SMALL_NETWORKS, settings
from processes import run_clsp, start_clsp_with_small_files

DIFFUSION = {"channels": "[32,32]", "attention": "[false,false]", "blocks": 1, "batch_size": 8}
DIFFUSION |= {"steps": 4, "checkpoint_steps": 1, "warmup_steps": 1}


def assert_says(running, *parts: str) -> None:
    code = running.wait()
    lines = running.stderr.strip().splitlines()
    assert code == FAILED, running.stderr
    assert len(lines) == 1 and "Traceback" not in running.stdout, running.stderr
    assert all(part in lines[0] for part in parts), lines


def test_training_a_diffusion_model(tmp_path):
    values = {f"diffusion.{key}": value for key, value in DIFFUSION.items()}
    command = ("diffusion", "train", "--recipe", "digits", *settings(values), "--out", tmp_path)
    begun = start_clsp_with_small_files(300_000, *command)
    assert_says(begun, str(tmp_path / "checkpoint.pt"), "File too large", "make room")
    assert not (tmp_path / "checkpoint.pt").exists() and not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("limit", "trackers", "named"),
    [
        (20_000, "[]", "checkpoints/step-000000002.safetensors"),
        (100, "[]", "to the disk"),
        (3_000, "[tensorboard]", ""),
    ],
)
def test_pretraining(shard_set, tmp_path, limit, trackers, named):
    values = {**SMALL_NETWORKS, "pretrain.checkpoint_epochs": 1, "pretrain.epochs": 1}
    values |= {"pretrain.trackers": trackers, "pretrain.cache": "none"}
    common = ("pretrain", "--recipe", "digits", *settings(values), "--shards", shard_set)
    assert_says(
        start_clsp_with_small_files(limit, *common, "--out", tmp_path), "cannot write", named
    )
    assert not (tmp_path / "backbone").exists() and not list(tmp_path.rglob(".*.tmp"))


def test_making_shards(model_folder, tmp_path):
    values = {"sampler.steps": 1, "anchors.limit": 48, "shards.records": 24, "shards.candidates": 2}
    make = ("shards", "make", "--recipe", "digits", *settings(values), "--diffusion", model_folder)
    make = (*make, "--out", tmp_path / "set")
    assert_says(start_clsp_with_small_files(20_000, *make), "shard-000000.tar", "File too large")
    assert not list((tmp_path / "set").rglob("*.tar")) and not list(tmp_path.rglob(".*.tmp"))
    run_clsp(*make)
    assert len(list((tmp_path / "set").rglob("*.tar"))) == 2
