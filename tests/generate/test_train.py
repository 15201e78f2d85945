import hashlib
import os
import subprocess
import sys

import pytest
from clsp.generate import DiffusionConfig, train_diffusion
from clsp.generate.train import ImageOrder
from clsp.shards import InputError, StopRequested
from diffusers import DDPMPipeline

CONFIG = DiffusionConfig(
    channels=(32, 32), attention=(False, False), blocks=1, steps=6, batch_size=8, warmup_steps=2, checkpoint_steps=2
)


def weights(folder) -> str:
    return hashlib.sha256((folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()


def test_an_interrupted_run_ends_with_the_same_weights(digits, tmp_path, monkeypatch):
    whole = train_diffusion(digits, CONFIG, tmp_path / "whole")
    from clsp.generate import train

    original = train._train_step

    def step_and_stop(accelerator, unet, optimizer, scheduler, x0, config, step):
        if step == 5:
            raise StopRequested
        return original(accelerator, unet, optimizer, scheduler, x0, config, step)

    monkeypatch.setattr(train, "_train_step", step_and_stop)
    with pytest.raises(StopRequested):
        train_diffusion(digits, CONFIG, tmp_path / "parts")
    monkeypatch.undo()
    parts = train_diffusion(digits, CONFIG, tmp_path / "parts")
    assert weights(parts) == weights(whole)
    assert DDPMPipeline.from_pretrained(parts).unet.config["sample_size"] == 8
    assert not list(parts.glob("*.pt"))


def test_the_folder_of_another_run_is_refused(digits, tmp_path):
    train_diffusion(digits, CONFIG.model_copy(update={"steps": 1}), tmp_path / "model")
    before = weights(tmp_path / "model")
    with pytest.raises(InputError, match="other settings"):
        train_diffusion(digits, CONFIG, tmp_path / "model")
    assert weights(tmp_path / "model") == before
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.tex").touch()
    with pytest.raises(InputError, match="exists and is no model"):
        train_diffusion(digits, CONFIG, tmp_path / "foreign")


def test_ranks_share_the_global_batches_and_an_epoch_has_every_image_once():
    config = CONFIG.model_copy(update={"batch_size": 4})
    steps = list(ImageOrder(20, config, 0, 5))
    assert sorted(sum(steps, [])) == list(range(20))
    halves = [next(iter(ImageOrder(20, config, 3, 4, rank, 2))) for rank in range(2)]
    assert halves[0] + halves[1] == steps[3]
    assert list(ImageOrder(20, config, 3, 12)) == list(ImageOrder(20, config, 0, 12))[3:]


def test_two_processes_train_one_model(tmp_path):
    settings = [f"--set=diffusion.{key}" for key in ("steps=4", "batch_size=8", "checkpoint_steps=2", "warmup_steps=1")]
    command = [
        "-m",
        "clsp.cli",
        "diffusion",
        "train",
        "--recipe",
        "digits",
        *settings,
        "--out",
        str(tmp_path / "model"),
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    found = subprocess.run([*launcher, *command], env={**os.environ, "ACCELERATE_USE_CPU": "true"}, check=False)
    assert found.returncode == 0
    assert DDPMPipeline.from_pretrained(tmp_path / "model").unet.config["sample_size"] == 8
    assert not list((tmp_path / "model").glob("*.pt"))
