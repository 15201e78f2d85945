"""Training a diffusion model and sampling from it make the host wait for nothing; the images are those of a CPU."""

import importlib

import numpy as np
import pytest
from clsp.evaluate import load_stages
from clsp.generate import (
    AutoencoderConfig,
    PerceptualDistance,
    PerceptualModel,
    Sampler,
    SamplerConfig,
    load_diffusion,
    train_autoencoder,
    train_diffusion,
)
from clsp.generate.unconditional import draw_images
from conftest import TINY
from waits import DEVICE, counted_waits, needs_pretended_device

TRAINING = importlib.import_module("clsp.generate.train_diffusion")
KEYS = ["train_00000000", "train_00000001"]
IMAGES_BHWC = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
pytestmark = needs_pretended_device


def check_sampling(model, classes: list[int] | None = None, **settings) -> None:
    """Check that the host waits for the result alone, and that it is what a CPU makes, up to rounding."""
    config = SamplerConfig(**{"eta": 0, "micro_batch": 2, "steps": 6, **settings})
    sampler = Sampler(model, config, DEVICE)
    with counted_waits() as waits:
        found = sampler(IMAGES_BHWC, KEYS, candidates=2, classes=classes)
    ((what, _),) = waits
    assert what == "copy to the host" and waits.total() == 1

    on_cpu = Sampler(model, config, "cpu")
    expected = on_cpu(IMAGES_BHWC, KEYS, candidates=2, classes=classes)
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("share_anchor", [True, False])
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize(("scheduler", "eta"), [("ddim", 0.1), ("unipc", 0), ("dpmsolver++", 0)])
def test_a_sampling_step_waits_for_nothing(model_folder, scheduler, eta, clip, share_anchor):
    model = load_diffusion(str(model_folder), 8)
    check_sampling(model, scheduler=scheduler, eta=eta, clip=clip, share_anchor=share_anchor)


def test_training_and_guidance_wait_for_nothing(digits, tmp_path, monkeypatch):
    """Images of classes: the third step of the training, then samples with guidance, on the arc."""
    step = TRAINING._Training.step
    found = {}

    def counted_step(self, batch, number):
        with counted_waits() as waits:
            step(self, batch, number)
        found[number] = dict(waits)

    monkeypatch.setattr(TRAINING._Training, "step", counted_step)
    settings = {"steps": 3, "batch_size": 16, "condition": "labels", "snr_gamma": 5.0}
    config = TINY.model_copy(update=settings)
    model = load_diffusion(str(train_diffusion(digits, config, tmp_path / "model")), 8)
    assert found[2] == {}

    check_sampling(model, classes=[0, 3], guidance=2.0, mixing="slerp")


def test_training_an_autoencoder_waits_for_nothing(digits, tmp_path, monkeypatch, encoder_folder):
    training = importlib.import_module("clsp.generate.train_autoencoder")
    step = training._Training.step
    found = {}

    def counted_step(self, batch, number):
        with counted_waits() as waits:
            step(self, batch, number)
        found[number] = dict(waits)

    def load():
        model, facts = load_stages(encoder_folder)
        return PerceptualDistance(model, facts["mean"], facts["std"])

    monkeypatch.setattr(training._Training, "step", counted_step)
    settings = {"channels": (8, 16), "norm_groups": 8, "blocks": 1, "steps": 3, "perceptual": "any"}
    perceptual = PerceptualModel("11", load)
    train_autoencoder(
        digits, AutoencoderConfig(**settings), tmp_path / "model", perceptual=perceptual
    )
    assert found[2] == {}


def test_drawing_images_waits_for_nothing(model_folder):
    model = load_diffusion(str(model_folder), 8)
    unet = model.unet.to(DEVICE)
    with counted_waits() as waits:
        list(draw_images(unet, model.noise_schedule, 8, count=4, steps=4, clip=False))
    assert waits == {}
