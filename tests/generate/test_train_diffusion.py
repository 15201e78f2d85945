import errno
import hashlib
import json
import os
import resource
import signal

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from clsp.cli.main import run
from clsp.core import InputError, StopRequested, WorkError
from clsp.generate import DiffusionConfig, TrainingDigests, train_diffusion
from clsp.generate.pixels import to_uint8
from clsp.generate.train_diffusion import _folder, _Training
from clsp.generate.train_images import ImageOrder
from clsp.generate.unconditional import draw_images
from clsp.train import PretrainConfig
from clsp.train.backbone import build_backbone, save_backbone
from diffusers import DDPMPipeline
from processes import run_ranks
from small_diffusion import SMALL

CONFIG = SMALL.model_copy(update={"steps": 6})


def weights(folder) -> str:
    return hashlib.sha256(
        (folder / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    ).hexdigest()


def make_training(digits, config, out) -> _Training:
    folder = _folder(digits, config, out, TrainingDigests())
    return _Training(Accelerator(), digits, config, folder, None, True, None)


class CrashError(Exception):
    pass


@pytest.mark.parametrize("crash", [False, True])
def test_an_interrupted_run_ends_with_the_same_weights(digits, tmp_path, monkeypatch, crash):
    config = CONFIG.model_copy(update={"checkpoint_steps": 2 if crash else 100})
    whole = train_diffusion(digits, config, tmp_path / "whole")
    original = _Training.step

    def step_and_stop(self, x0, step):
        if step == 4:
            if crash:
                raise CrashError
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, x0, step)

    monkeypatch.setattr(_Training, "step", step_and_stop)
    with pytest.raises(CrashError if crash else StopRequested):
        train_diffusion(digits, config, tmp_path / "parts")
    monkeypatch.undo()
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert state["step"] == (4 if crash else 5)
    parts = train_diffusion(digits, config, tmp_path / "parts")
    assert (parts / "log.jsonl").read_bytes() == (whole / "log.jsonl").read_bytes()
    assert weights(parts) == weights(whole)
    assert DDPMPipeline.from_pretrained(parts).unet.config["sample_size"] == 8
    assert not list(parts.glob("*.pt"))


def test_a_second_training_is_kept_out_of_a_folder(digits, tmp_path):
    refused = []

    def start_another(*progress):
        with pytest.raises(InputError, match=f"another process works in {tmp_path}; wait") as error:
            train_diffusion(digits, CONFIG, tmp_path)
        refused.append(error)

    train_diffusion(digits, CONFIG, tmp_path, report=start_another)
    assert len(refused) == CONFIG.steps
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1


def test_a_model_that_cannot_be_saved_leaves_the_last_checkpoint(digits, tmp_path):
    config = CONFIG.model_copy(update={"steps": 3})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_disk(done, steps, *progress):
        if done < steps:  # only behind the last step, before the model is saved
            return
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(WorkError, match=f"cannot write {tmp_path}: .*File too large"):
            train_diffusion(digits, config, tmp_path, report=fill_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    assert not list(tmp_path.glob(".*.tmp"))
    train_diffusion(digits, config, tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    assert weights.stat().st_mode == (tmp_path / "model_index.json").stat().st_mode


def test_a_model_that_blows_up_is_not_saved(digits, tmp_path, monkeypatch):
    def learning_rate(config, step):
        return 1e-4 if step < 4 else 1e30

    monkeypatch.setattr(DiffusionConfig, "learning_rate", learning_rate)
    named = (
        f"not finite any more after step 6; the last good checkpoint is {tmp_path}/checkpoint.pt"
    )
    with pytest.raises(WorkError, match=f"{named}; lower diffusion.lr"):
        train_diffusion(digits, CONFIG, tmp_path)

    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["step"] == 4
    assert all(torch.isfinite(value).all() for value in state["unet"].values())
    assert not (tmp_path / "model_index.json").exists() and not (tmp_path / "log.jsonl").exists()


def test_a_training_without_a_checkpoint_makes_way_for_corrected_settings(
    digits, tmp_path, monkeypatch, caplog
):
    out = tmp_path / "model"
    changes = {"steps": 60, "sample_steps": 25, "checkpoint_steps": 100}
    config = CONFIG.model_copy(update=changes)
    with monkeypatch.context() as patch:
        # Good for 50 steps, with a row and two grids, then not finite
        patch.setattr(DiffusionConfig, "learning_rate", lambda _, step: 1e30 if step > 50 else 1e-4)
        with pytest.raises(WorkError, match=r"last good checkpoint is none; .* the same --out"):
            train_diffusion(digits, config, out, recipe=b"wrong")
    left = {path: (out / path).read_bytes() for path in ("training.json", "log.jsonl")}
    assert left["log.jsonl"].count(b"\n") == 1

    # The corrected settings, into the same folder
    corrected = CONFIG.model_copy(update={"lr": 1e-4, "sample_steps": 3})
    train_diffusion(digits, corrected, out, recipe=b"right")
    alone = train_diffusion(digits, corrected, tmp_path / "alone")
    assert weights(out) == weights(alone)
    for name in ("training.json", "log.jsonl"):
        assert (out / name).read_bytes() == (alone / name).read_bytes()
    assert [path.name for path in sorted((out / "samples").iterdir())] == [
        "step-00000003.png",
        "step-00000006.png",
    ]

    # Nothing is lost
    aside = out / "stopped-1"
    assert {path: (aside / path).read_bytes() for path in left} == left
    assert len(list((aside / "samples").iterdir())) == 2
    assert ((aside / "recipe.toml").read_bytes(), (out / "recipe.toml").read_bytes()) == (
        b"wrong",
        b"right",
    )
    assert f"is now in {aside}" in caplog.text


def test_a_training_with_a_checkpoint_makes_no_way(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(
        DiffusionConfig, "learning_rate", lambda _, step: 1e30 if step > 3 else 1e-4
    )
    with pytest.raises(WorkError, match=r"checkpoint\.pt; .* another --out"):
        train_diffusion(digits, CONFIG, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="other settings"):
        train_diffusion(digits, CONFIG.model_copy(update={"lr": 1e-4}), tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_no_training_makes_way_where_no_lock_shows_that_it_has_ended(digits, tmp_path, monkeypatch):
    def no_locks(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    refused = []

    def start_another(*progress):  # before the first checkpoint
        with pytest.raises(InputError, match="other settings") as error:
            train_diffusion(digits, CONFIG.model_copy(update={"lr": 1e-4}), tmp_path)
        refused.append(error)

    train_diffusion(digits, CONFIG.model_copy(update={"steps": 1}), tmp_path, report=start_another)
    assert len(refused) == 1


def test_the_recipe_of_a_command_that_is_kept_out_is_not_written(digits, clsp, tmp_path):
    out = tmp_path / "model"
    refused = []

    def start_another(*progress):
        small = ("--set=diffusion.channels=[32]", "--set=diffusion.attention=[false]")
        found = clsp("diffusion", "train", "--recipe", "digits", *small, "--out", out)
        assert found.returncode == 2 and "another process works in" in found.stderr
        refused.append((out / "recipe.toml").read_bytes())

    config = CONFIG.model_copy(update={"steps": 1})
    train_diffusion(digits, config, out, report=start_another, recipe=b"the first")
    assert refused == [b"the first"] == [(out / "recipe.toml").read_bytes()]


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


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    settings = [
        f"--set=diffusion.{key}"
        for key in ("steps=4", "batch_size=8", "checkpoint_steps=2", "warmup_steps=1")
    ]
    run_ranks(
        2,
        run,
        ["diffusion", "train", "--recipe", "digits", *settings, "--out", str(tmp_path / "model")],
    )
    assert DDPMPipeline.from_pretrained(tmp_path / "model").unet.config["sample_size"] == 8
    assert not list((tmp_path / "model").glob("*.pt"))


def test_grids_and_the_probe_go_with_the_training_and_do_not_disturb_it(digits, tmp_path):
    plain = train_diffusion(digits, CONFIG, tmp_path / "plain")
    seen = []

    def probe(batches):
        images = np.concatenate(list(batches))
        seen.append(images)
        return {"frechet": float(len(images))}

    config = CONFIG.model_copy(update={"sample_steps": 3, "probe_images": 80, "probe_encoder": "x"})
    out = train_diffusion(digits, config, tmp_path / "watched", probe=probe)
    assert weights(out) == weights(plain)
    assert [path.name for path in sorted((out / "samples").iterdir())] == [
        "step-00000003.png",
        "step-00000006.png",
    ]
    assert [images.shape for images in seen] == [(80, 8, 8, 3)] * 2 and seen[0].dtype == np.uint8
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert (
        [row["step"] for row in rows] == [3, 6] and rows[1]["frechet"] == 80 and "loss" in rows[1]
    )
    drawn = DDPMPipeline.from_pretrained(
        out
    ).unet  # the last grid is of the averaged weights, which were saved
    expected = torch.cat(list(draw_images(drawn, {"num_train_timesteps": 1000}, 8, 80)))
    assert np.array_equal(to_uint8(expected), seen[1])


def test_bf16_training_keeps_float32_weights_and_learns_nearly_the_same(
    digits, tmp_path, forget_precision
):
    full = train_diffusion(digits, CONFIG, tmp_path / "full")
    forget_precision()
    half = train_diffusion(
        digits, CONFIG.model_copy(update={"precision": "bf16"}), tmp_path / "half"
    )
    one, other = (DDPMPipeline.from_pretrained(out).unet.state_dict() for out in (full, half))
    assert all(tensor.dtype == torch.float32 for tensor in other.values())
    difference = torch.cat([(one[name] - other[name]).flatten() for name in one])
    assert (
        0 < difference.abs().max() < 2 * CONFIG.lr * CONFIG.steps
    )  # Adam moves a weight by at most lr a step


def test_a_probe_needs_to_know_how_often_and_in_whose_features(clsp, tmp_path):
    found = clsp(
        "diffusion",
        "train",
        "--recipe",
        "digits",
        "--set=diffusion.probe_images=64",
        "--out",
        tmp_path / "m",
    )
    assert found.returncode == 2 and "probe_images needs sample_steps" in found.stderr


def test_the_frechet_probe_of_the_command(clsp, tmp_path):
    config = PretrainConfig(backbone_kwargs={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]})
    save_backbone(build_backbone(config), config, 8, tmp_path / "encoder")
    values = {
        "steps": 4,
        "batch_size": 8,
        "sample_steps": 2,
        "probe_images": 64,
        "probe_encoder": tmp_path / "encoder",
    }
    settings = [f"--set=diffusion.{key}={value}" for key, value in values.items()]
    found = clsp("diffusion", "train", "--recipe", "digits", *settings, "--out", tmp_path / "model")
    assert found.returncode == 0, found.stderr
    rows = [
        json.loads(line) for line in (tmp_path / "model" / "log.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [2, 4] and all(row["frechet"] > 0 for row in rows)


def test_the_learning_rate_falls_along_a_cosine_behind_the_warm_up():
    config = DiffusionConfig(steps=1000, warmup_steps=100, lr=1e-3)
    cosine = config.model_copy(update={"lr_schedule": "cosine"})
    for step in (0, 50, 99):
        assert (
            config.learning_rate(step)
            == cosine.learning_rate(step)
            == pytest.approx(1e-3 * (step + 1) / 100)
        )
    assert config.learning_rate(999) == cosine.learning_rate(100) == 1e-3
    assert cosine.learning_rate(550) == pytest.approx(0.5e-3)
    assert 0 < cosine.learning_rate(999) < 1e-8


@pytest.mark.parametrize("gamma", [0.0, 5.0])
def test_min_snr_weighs_the_loss_of_each_timestep(digits, tmp_path, gamma):
    """Equation 7 of Hang et al. for the prediction of noise, by hand in float64."""
    config = CONFIG.model_copy(update={"snr_gamma": gamma})
    training = make_training(digits, config, tmp_path)
    generator = torch.Generator().manual_seed(0)
    predicted, noise = (torch.randn(5, 3, 8, 8, generator=generator) for _ in range(2))
    timesteps = [0, 10, 200, 500, 999]
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    weights = np.minimum(snr, gamma) / snr if gamma else np.ones(5)
    errors = (predicted - noise).double().square().mean(dim=(1, 2, 3)).numpy()
    found = training._loss(predicted, noise, torch.tensor(timesteps))
    assert float(found) == pytest.approx((weights * errors).mean(), rel=1e-3)


def test_the_average_warms_up_as_asked(digits, tmp_path):
    """After 6 steps 1 - 6^(-2/3) of the old average is kept, by diffusers' rule without it (1 + 5) / (10 + 5)."""
    for warmup, expected in ((False, 6 / 15), (True, 1 - 6 ** (-2 / 3))):
        config = CONFIG.model_copy(update={"ema_warmup": warmup})
        ema = make_training(digits, config, tmp_path).ema
        assert ema.get_decay(6) == pytest.approx(expected)


def test_a_training_keeps_the_precision_it_was_begun_with(
    clsp, tmp_path, monkeypatch, forget_precision
):
    values = {
        "steps": 3,
        "batch_size": 8,
        "precision": "auto",
        "channels": "[32]",
        "attention": "[false]",
    }
    command = [
        "diffusion",
        "train",
        "--recipe",
        "digits",
        *[f"--set=diffusion.{k}={v}" for k, v in values.items()],
    ]

    def precision(folder) -> str:
        return json.loads((folder / "training.json").read_text())["precision"]

    for answer, expected in (("yes", "bf16"), ("no", "no")):
        monkeypatch.setenv("CLSP_BF16", answer)
        forget_precision()
        assert clsp(*command, "--out", tmp_path / answer).returncode == 0
        assert precision(tmp_path / answer) == expected
    forget_precision()
    again = clsp(*command, "--out", tmp_path / "yes")  # on a machine without bf16
    assert again.returncode == 0 and "already trained" in again.stdout
    assert "note: diffusion.precision asks for bfloat16" in again.stdout
