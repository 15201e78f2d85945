"""Training an autoencoder: against plain diffusers, numpy and the anchors themselves."""

import hashlib
import json
import os
import signal

import numpy as np
import pytest
import torch
from clsp.cli.main import run
from clsp.core import InputError, StopRequested, WorkError, stream_seed
from clsp.evaluate import encoder_digest, load_stages
from clsp.generate import (
    AutoencoderConfig,
    PerceptualDistance,
    PerceptualModel,
    train_autoencoder,
    train_diffusion,
)
from clsp.generate.reconstruction import psnr, reconstruction_grid, scaling_factor
from clsp.generate.train_autoencoder import _Training, build_autoencoder
from clsp.generate.train_images import ImageOrder
from clsp.shards import AnchorsConfig, ImageSource
from clsp.train import load_backbone
from conftest import TINY, settings
from diffusers import AutoencoderKL
from PIL import Image
from processes import run_ranks

CONFIG = AutoencoderConfig(
    channels=(8, 16),
    norm_groups=8,
    blocks=1,
    latent_channels=2,
    steps=6,
    batch_size=8,
    warmup_steps=2,
    checkpoint_steps=2,
    sample_steps=3,
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


def weights(folder) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def pixels(anchors, places) -> torch.Tensor:
    """Anchors `(B, 3, H, W)` in [-1, 1]."""
    images = np.stack([anchors[place].image for place in places]).astype(np.float32)
    return torch.from_numpy(images / 127.5 - 1).permute(0, 3, 1, 2)


def latent_means(net, images) -> np.ndarray:
    with torch.no_grad():
        moments = net.quant_conv(net.encoder(images))
    return moments[:, : net.config["latent_channels"]].double().numpy()


class CrashError(Exception):
    pass


@pytest.mark.parametrize("crash", [False, True])
def test_an_interrupted_run_ends_with_the_same_weights(digits, tmp_path, monkeypatch, crash):
    config = CONFIG.model_copy(update={"checkpoint_steps": 2 if crash else 100})
    whole = train_autoencoder(digits, config, tmp_path / "whole")
    original = _Training.step

    def step_and_stop(self, batch, step):
        if step == 4:
            if crash:
                raise CrashError
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, batch, step)

    with monkeypatch.context() as patch:
        patch.setattr(_Training, "step", step_and_stop)
        with pytest.raises(CrashError if crash else StopRequested):
            train_autoencoder(digits, config, tmp_path / "parts")
    state = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert state["step"] == (4 if crash else 5)

    parts = train_autoencoder(digits, config, tmp_path / "parts")
    assert weights(parts) == weights(whole)
    for name in ("log.jsonl", "config.json", "samples/step-00000006.png"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
    assert not list(parts.glob("*.pt"))


def test_a_step_is_that_of_plain_diffusers(digits, tmp_path):
    """The figures of the log, and the weights behind the step, by a loop of a few lines."""
    changes = {"steps": 1, "warmup_steps": 0, "flip": False, "kl_weight": 0.01, "seed": 3}
    config = CONFIG.model_copy(update=changes)
    out = train_autoencoder(digits, config, tmp_path / "model")

    # The same network and images
    torch.manual_seed(stream_seed(3, "autoencoder weights"))
    net = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=2,
        norm_num_groups=8,
        sample_size=8,
    )
    images = pixels(digits, next(iter(ImageOrder(40, config, 0, 1))))

    # The loss
    torch.manual_seed(stream_seed(3, 0, 0, "autoencoder"))
    mean, logvar = net.quant_conv(net.encoder(images)).chunk(2, dim=1)
    latents = mean + (logvar / 2).exp() * torch.randn(mean.shape)
    decoded = net.decoder(net.post_quant_conv(latents))
    reconstruction = (decoded - images).abs().mean()
    kl = (mean**2 + logvar.exp() - 1 - logvar).sum() / 2 / 8 / (3 * 8 * 8)
    loss = reconstruction + 0.01 * kl

    # The step
    optimizer = torch.optim.Adam(net.parameters(), lr=config.lr)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()

    (row,) = rows(out)
    assert row["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["reconstruction"] == pytest.approx(reconstruction.item(), rel=1e-5)
    assert row["kl"] == pytest.approx(kl.item(), rel=1e-5)

    # Adam's first step is the gradient's sign, which is rounding where a bias changes nothing
    saved = AutoencoderKL.from_pretrained(out).state_dict()
    compared = 0
    for name, parameter in net.named_parameters():
        moves = parameter.grad.abs() > 1e-5
        assert torch.allclose(saved[name][moves], parameter[moves], atol=1e-6), name
        compared += int(moves.sum())
    assert compared > 0.9 * sum(parameter.numel() for parameter in net.parameters())


def test_psnr_and_the_grid_are_of_the_saved_model(digits, tmp_path):
    config = CONFIG.model_copy(update={"sample_steps": 6})
    out = train_autoencoder(digits, config, tmp_path / "model")
    net = AutoencoderKL.from_pretrained(out)
    images = pixels(digits, range(40))
    with torch.no_grad():
        found = net.decode(torch.from_numpy(latent_means(net, images)).float()).sample.clamp(-1, 1)

    # PSNR of images in [0, 1], in float64
    errors = ((found - images).double().numpy() / 2) ** 2
    expected = [10 * np.log10(1 / error.mean()) for error in errors]
    assert rows(out)[-1]["psnr"] == pytest.approx(np.mean(expected), rel=1e-4)

    # Every other image: eight originals, their reconstructions below, two pixels between
    grid = np.asarray(Image.open(out / "samples" / "step-00000006.png")).astype(int)
    assert grid.shape == (2 + 6 * 10, 2 + 8 * 10, 3)
    shown = ((found + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    for number, place in enumerate(range(0, 40, 2)):
        row, column = divmod(number, 8)
        top, left = 2 + 20 * row, 2 + 10 * column
        original = grid[top : top + 8, left : left + 8]
        below = grid[top + 10 : top + 18, left : left + 8]
        assert np.array_equal(original, digits[place].image)
        assert np.abs(below - shown[place]).max() < 1


def test_equal_images_have_a_finite_psnr():
    image = torch.zeros(1, 3, 4, 4)
    assert psnr(image, image).item() == 100
    assert psnr(image, image + 0.2).item() == pytest.approx(20)  # an error of 0.1 in [0, 1]
    assert reconstruction_grid(torch.zeros(9, 3, 4, 4), torch.zeros(9, 3, 4, 4)).shape[0] == 32


def test_the_scaling_factor_brings_the_latents_to_unit_variance(digits, tmp_path):
    out = train_autoencoder(digits, CONFIG, tmp_path / "model")
    net = AutoencoderKL.from_pretrained(out)
    means = latent_means(net, pixels(digits, range(40)))
    assert net.config["scaling_factor"] == pytest.approx(1 / means.std(), rel=1e-5)
    assert (means * net.config["scaling_factor"]).std() == pytest.approx(1, rel=1e-5)


def test_latents_that_are_all_alike_are_said(digits):
    net = build_autoencoder(CONFIG, 8)
    torch.nn.init.zeros_(net.quant_conv.weight)
    torch.nn.init.zeros_(net.quant_conv.bias)
    with pytest.raises(WorkError, match=r"all anchors are alike.*lower autoencoder\.kl_weight"):
        scaling_factor(net, digits)


def test_reconstructions_become_better_than_flat_colours(tmp_path):
    digits = ImageSource(AnchorsConfig(limit=200))
    changes = {"steps": 60, "batch_size": 32, "lr": 5e-3, "warmup_steps": 10, "flip": False}
    config = CONFIG.model_copy(
        update={**changes, "latent_channels": 4, "norm_groups": 4, "sample_steps": 30}
    )
    out = train_autoencoder(digits, config, tmp_path / "model")
    places = digits.spread(64)
    images = np.stack([digits[place].image for place in places]) / 255
    flat = images.mean(axis=(1, 2), keepdims=True)  # each image's own mean colour
    baseline = np.mean(10 * np.log10(1 / ((images - flat) ** 2).mean(axis=(1, 2, 3))))
    first, last = (row["psnr"] for row in rows(out) if "psnr" in row)
    assert last > first and last > baseline + 3


def test_the_training_is_not_disturbed_by_what_is_watched(digits, tmp_path):
    watched = train_autoencoder(digits, CONFIG, tmp_path / "watched")
    unwatched = CONFIG.model_copy(update={"sample_steps": 0})
    assert weights(train_autoencoder(digits, unwatched, tmp_path / "plain")) == weights(watched)
    assert [path.name for path in sorted((watched / "samples").iterdir())] == [
        "step-00000003.png",
        "step-00000006.png",
    ]
    assert ["psnr" in row for row in rows(watched)] == [True, True]
    assert not (tmp_path / "plain" / "samples").exists()


@pytest.fixture
def perceptual(encoder_folder) -> PerceptualModel:
    def load() -> PerceptualDistance:
        model, facts = load_stages(encoder_folder)
        return PerceptualDistance(model, facts["mean"], facts["std"])

    return PerceptualModel(encoder_digest(encoder_folder), load)


def test_the_perceptual_distance_is_the_documented_one(encoder_folder, perceptual):
    """The stages of a ResNet one after another, the rest in numpy."""
    model, facts = load_backbone(encoder_folder)
    generator = torch.Generator().manual_seed(0)
    pair = torch.rand(2, 5, 3, 16, 16, generator=generator) * 2 - 1

    distances = []
    with torch.no_grad():
        mean, std = (torch.tensor(facts[key])[:, None, None] for key in ("mean", "std"))
        features = ((pair.flatten(0, 1) + 1) / 2 - mean) / std
        features = model.act1(model.bn1(model.conv1(features)))
        for number, layer in enumerate(
            (None, model.layer1, model.layer2, model.layer3, model.layer4)
        ):
            if number == 1:
                features = model.maxpool(features)
            features = features if layer is None else layer(features)
            stage = features.double().numpy()
            length = np.sqrt((stage**2).sum(axis=1, keepdims=True))
            unit = stage / np.where(length == 0, 1, length)
            distances.append(((unit[:5] - unit[5:]) ** 2).sum(axis=1).mean())

    found = perceptual.load()(pair[0], pair[1])
    assert float(found) == pytest.approx(np.mean(distances), rel=1e-4)


def test_features_with_their_channels_last_are_turned():
    class Stages(torch.nn.Module):
        output_fmt = "NHWC"

        def forward(self, images):
            return [images.movedim(1, -1)]

    images, others = torch.rand(2, 4, 3, 5, 6) * 2 - 1
    found = PerceptualDistance(Stages(), (0, 0, 0), (1, 1, 1))(images, others)
    one, other = ((batch.double().numpy() + 1) / 2 for batch in (images, others))
    cosines = (one * other).sum(1) / np.sqrt((one**2).sum(1) * (other**2).sum(1))
    assert float(found) == pytest.approx((2 - 2 * cosines).mean(), rel=1e-4)


def test_the_perceptual_term_is_part_of_the_loss_and_of_the_folder(digits, tmp_path, perceptual):
    config = CONFIG.model_copy(update={"perceptual": "any", "perceptual_weight": 0.5})
    out = train_autoencoder(digits, config, tmp_path / "model", perceptual=perceptual)
    row = rows(out)[-1]
    terms = row["reconstruction"] + CONFIG.kl_weight * row["kl"] + 0.5 * row["perceptual"]
    assert row["loss"] == pytest.approx(terms, rel=1e-5) and row["perceptual"] > 0
    plain = train_autoencoder(digits, CONFIG, tmp_path / "plain")
    assert weights(plain) != weights(out)

    # The same weights from elsewhere are the same model, others are another
    elsewhere = config.model_copy(update={"perceptual": "elsewhere"})
    before = weights(out)
    train_autoencoder(digits, elsewhere, out, perceptual=perceptual)
    other = PerceptualModel("another", perceptual.load)
    with pytest.raises(InputError, match="other settings"):
        train_autoencoder(digits, config, out, perceptual=other)
    assert weights(out) == before


def test_the_gradient_of_equal_features_is_finite(perceptual):
    images = torch.zeros(2, 3, 8, 8, requires_grad=True)
    distance = perceptual.load()
    distance(images, images.detach()).backward()
    assert torch.isfinite(images.grad).all()
    assert not any(parameter.requires_grad for parameter in distance.parameters())


def test_a_model_that_blows_up_is_not_saved(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(
        AutoencoderConfig, "learning_rate", lambda _, step: 1e-4 if step < 4 else 1e30
    )
    named = f"after step 6; the last good checkpoint is {tmp_path}/checkpoint.pt"
    with pytest.raises(WorkError, match=f"{named}; lower autoencoder.lr"):
        train_autoencoder(digits, CONFIG, tmp_path)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert all(torch.isfinite(value).all() for value in state["autoencoder"].values())
    assert not (tmp_path / "config.json").exists()


def test_another_kind_of_model_in_the_folder_is_left_alone(digits, tmp_path):
    autoencoder = train_autoencoder(digits, CONFIG, tmp_path / "autoencoder")
    diffusion = train_diffusion(digits, TINY.model_copy(update={"steps": 1}), tmp_path / "unet")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="other settings"):
        train_diffusion(digits, TINY, autoencoder)
    with pytest.raises(InputError, match="other settings"):
        train_autoencoder(digits, CONFIG, diffusion)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_second_training_is_kept_out_of_a_folder(digits, tmp_path):
    refused = []

    def start_another(*progress):
        with pytest.raises(InputError, match=f"another process works in {tmp_path}; wait") as error:
            train_autoencoder(digits, CONFIG, tmp_path)
        refused.append(error)

    train_autoencoder(digits, CONFIG, tmp_path, report=start_another)
    assert len(refused) == CONFIG.steps


def test_bf16_training_keeps_float32_weights_and_learns_nearly_the_same(
    digits, tmp_path, forget_precision
):
    full = train_autoencoder(digits, CONFIG, tmp_path / "full")
    forget_precision()
    config = CONFIG.model_copy(update={"precision": "bf16"})
    half = train_autoencoder(digits, config, tmp_path / "half")
    one, other = (AutoencoderKL.from_pretrained(out).state_dict() for out in (full, half))
    assert all(tensor.dtype == torch.float32 for tensor in other.values())
    difference = torch.cat([(one[name] - other[name]).flatten() for name in one])
    assert 0 < difference.abs().max() < 2 * CONFIG.lr * CONFIG.steps  # Adam's largest steps
    assert rows(half)[-1]["loss"] == pytest.approx(rows(full)[-1]["loss"], rel=0.02)


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    values = {
        "channels": [8, 16],
        "norm_groups": 8,
        "blocks": 1,
        "steps": 4,
        "batch_size": 8,
        "checkpoint_steps": 2,
        "sample_steps": 2,
    }
    chosen = settings({f"autoencoder.{key}": value for key, value in values.items()})
    out = tmp_path / "model"
    command = ["autoencoder", "train", "--recipe", "digits", *chosen, "--out", str(out)]
    run_ranks(2, run, command)
    assert AutoencoderKL.from_pretrained(out).config["sample_size"] == 8
    assert [row["step"] for row in rows(out)] == [2, 4]
    assert not list(out.glob("*.pt"))


def test_the_learning_rate_falls_along_a_cosine_behind_the_warm_up():
    config = AutoencoderConfig(steps=1000, warmup_steps=100, lr=1e-3)
    for step in (0, 50, 99):
        assert config.learning_rate(step) == pytest.approx(1e-3 * (step + 1) / 100)
    assert config.learning_rate(550) == pytest.approx(0.5e-3)
    assert 0 < config.learning_rate(999) < 1e-8


def test_the_default_is_the_autoencoder_of_stable_diffusion():
    """Its 83 653 863 parameters, as counted of the weights that are published for it."""
    with torch.device("meta"):
        net = build_autoencoder(AutoencoderConfig(), 256)
    assert sum(parameter.numel() for parameter in net.parameters()) == 83_653_863
