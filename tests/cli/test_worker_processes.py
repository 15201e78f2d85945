"""Commands that read with workers end in one line, in time, and leave no process behind."""

import os
import shutil
import signal
import tarfile
import time

import numpy as np
import pytest
from clsp.shards.format.layout import shard_path
from conftest import SMALL_NETWORKS, settings
from PIL import Image
from processes import start_clsp

pytestmark = pytest.mark.slow
SECONDS = 120
WITH_WORKERS = {
    **SMALL_NETWORKS,
    "pretrain.workers": 2,
    "pretrain.cache": "none",  # else the pixels that another run has kept would be read
    "diffusion.workers": 2,
    "autoencoder.workers": 2,
}


def assert_ended(running, code: int, *parts: str) -> None:
    """The command ended in time with this code and one line, and none of its processes is left."""
    assert running.wait(SECONDS) == code, running.stderr
    assert running.pids == []
    lines = [line for line in running.stderr.splitlines() if line.startswith("clsp: ")]
    assert len(lines) == 1 and "Traceback" not in running.stderr
    assert all(part in lines[0] for part in parts), lines


def pretrain(root, out, **changes):
    chosen = settings({**WITH_WORKERS, **changes})
    return start_clsp("pretrain", "--recipe", "digits", "--shards", root, "--out", out, *chosen)


@pytest.mark.parametrize("member", ["train_00000020.anchor.webp", "train_00000020.c001.webp"])
def test_a_damaged_record_is_named(shard_set, tmp_path, member):
    root = tmp_path / "set"
    shutil.copytree(shard_set, root)
    tar = shard_path(root, 0, 1)
    with tarfile.open(tar) as archive:
        found = archive.getmember(member)
    tar.chmod(0o644)
    with tar.open("r+b") as file:
        file.seek(found.offset_data + 25)
        file.write(bytes(found.size - 25))
    epochs = {"pretrain.epochs": 30}  # one of which draws the damaged candidate
    advice = f"run: clsp shards repair {root}"
    assert_ended(pretrain(root, tmp_path / "run", **epochs), 1, "record train_00000020", advice)


def test_a_missing_tar_is_named(shard_set, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(shard_set, root)
    shard_path(root, 0, 1).unlink()
    parts = ["layer-000/shard-000001.tar", "record train_000000", f"clsp shards repair {root}"]
    assert_ended(pretrain(root, tmp_path / "run"), 1, *parts)


def train_diffusion(folder, out, **changes):
    chosen = settings({**WITH_WORKERS, "anchors.path": folder, **changes})
    return start_clsp("diffusion", "train", "--recipe", "digits", "--out", out, *chosen)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(40):
        pixels = generator.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02}.png")
    return folder.parent


def test_a_truncated_image_of_the_diffusion_training_is_named(images, tmp_path):
    path = images / "train" / "30.png"
    path.write_bytes(path.read_bytes()[:100])
    named = ["anchor train_00000030", "does not decode", "replace or remove it"]
    assert_ended(train_diffusion(images, tmp_path / "model"), 2, *named)


def stopped(running, log) -> None:
    """Stop a command and its workers, as a scheduler does, once it has written to its log."""
    while running.returncode is None and not (log.exists() and log.read_bytes()):
        time.sleep(0.02)
    pids = running.pids
    assert len(pids) == 3
    for pid in pids:
        os.kill(pid, signal.SIGTERM)


def test_pretraining_stops_on_request(shard_set, tmp_path):
    run = tmp_path / "run"
    running = pretrain(shard_set, run, **{"pretrain.epochs": 2000})
    stopped(running, run / "log.jsonl")
    assert_ended(running, 75, "resumable")
    assert list((run / "checkpoints").glob("*.safetensors"))


def test_diffusion_training_stops_on_request(images, tmp_path):
    out = tmp_path / "model"
    running = train_diffusion(images, out, **{"diffusion.steps": 100000})
    stopped(running, out / "log.jsonl")
    assert_ended(running, 75, "resumable")
    assert (out / "checkpoint.pt").exists()


def test_autoencoder_training_stops_on_request(images, tmp_path):
    out = tmp_path / "model"
    values = {
        **WITH_WORKERS,
        "anchors.path": images,
        "autoencoder.channels": [8, 16],
        "autoencoder.norm_groups": 8,
        "autoencoder.blocks": 1,
        "autoencoder.sample_steps": 5,
    }
    command = ("autoencoder", "train", "--recipe", "digits", "--out", out)
    running = start_clsp(*command, *settings(values))
    stopped(running, out / "log.jsonl")
    assert_ended(running, 75, "resumable")
    assert (out / "checkpoint.pt").exists()
