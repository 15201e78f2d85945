"""Models that know their data exactly: per pixel a Gaussian, whose best noise prediction has a closed form."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.generate import check_statistics, load_diffusion
from clsp.generate.clusters import ClusterFacts, Clusters
from clsp.generate.condition import Condition


class GaussianModel(torch.nn.Module):
    """Predicts the noise of images whose pixels are N(mean, std²), as a perfectly trained U-Net would."""

    def __init__(self, mean: float, std: float):
        super().__init__()
        self.mean, self.std = mean, std
        self.weight = torch.nn.Parameter(torch.zeros(1))  # has a device
        self.alpha_bars = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))

    def forward(self, x, timesteps_B, class_labels=None):
        alpha_bar = float(self.alpha_bars[int(timesteps_B[0])])  # all are alike
        total = alpha_bar * self.std**2 + 1 - alpha_bar
        return SimpleNamespace(
            sample=(1 - alpha_bar) ** 0.5 * (x - alpha_bar**0.5 * self.mean) / total
        )


@pytest.fixture
def trained_on(model, digits):
    pixels = np.stack([anchor.image for anchor in digits]) / 127.5 - 1

    def build(scale, shift):
        return dataclasses.replace(
            model, unet=GaussianModel(scale * pixels.mean() + shift, scale * pixels.std())
        )

    return build, pixels


def test_a_model_of_the_right_range_passes(trained_on, digits):
    build, _ = trained_on
    check_statistics(build(1, 0), digits)


def test_an_untrained_model_passes(model, digits):
    check_statistics(model, digits)


@pytest.mark.parametrize(("scale", "shift", "name"), [(0.5, 0.5, "0, 1"), (127.5, 127.5, "0, 255")])
def test_positive_ranges_are_refused(trained_on, digits, scale, shift, name):
    build, _ = trained_on
    narrow = build(scale, shift)
    narrow.unet.std /= 4  # a Gaussian, unlike images, would reach below 0
    with pytest.raises(InputError, match=rf"trained on images in \[{name}\]; expected"):
        check_statistics(narrow, digits)


def test_standardised_images_are_refused(trained_on, digits):
    build, pixels = trained_on
    with pytest.raises(InputError, match="standardised"):
        check_statistics(build(1 / pixels.std(), -pixels.mean() / pixels.std()), digits)


def test_a_model_with_pseudo_classes_is_ours_and_passes_however_short_its_training(
    trained_on, digits
):
    build, pixels = trained_on
    wild = build(1 / pixels.std(), -pixels.mean() / pixels.std())
    keys = tuple(anchor.key for anchor in digits)
    images = tuple(anchor.digest for anchor in digits)
    facts = ClusterFacts(clusters=2, seed=0, encoder="pixels", encoder_digest="11")
    clusters = Clusters(facts, keys, images, np.arange(40) % 2)
    condition = Condition("clusters", embeddings=3, null=2, clusters=clusters)
    check_statistics(dataclasses.replace(wild, condition=condition), digits)


def test_a_model_that_names_another_range_goes_with_no_clip(trained_on, digits):
    build, _ = trained_on
    wider = dataclasses.replace(build(1, 0), clip_range=2.0)
    with pytest.raises(InputError, match=r"clips to \[-2, 2\].*sampler.clip=false"):
        check_statistics(wider, digits)
    check_statistics(wider, digits, clip=False)


def test_a_saved_range_is_read_with_the_model(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "wider")
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"clip_sample_range": 2.0}))
    assert load_diffusion(str(model_folder), 8).clip_range == 1
    assert load_diffusion(str(folder), 8).clip_range == 2
