"""Mixing on the arc, windows, guidance and other predictions, each against the equations in numpy or diffusers' own."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.generate import (
    Condition,
    DiffusionConfig,
    Encoded,
    Sampler,
    SamplerConfig,
    Stream,
    build_unet,
    decode,
    encode,
    interpolate_on_arc,
    keyed_normal,
    load_diffusion,
    noise_keys,
)
from clsp.generate.schedulers import mixing_timesteps
from diffusers import DDIMScheduler, DDPMScheduler
from pydantic import ValidationError

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
STEPS = 5
TIMESTEPS = (999, 799, 599, 399, 199)


def noise(key: str, timestep: int, candidate: int, stream: Stream) -> torch.Tensor:
    keys = noise_keys(0, [key], torch.device("cpu"))
    return keyed_normal(keys, (3, 8, 8), timestep, candidate, stream)


@pytest.fixture(scope="module")
def conditional(model):
    """A random model with three classes and «no class»."""
    config = DiffusionConfig(channels=(32, 32), attention=(False, False), blocks=1)
    torch.manual_seed(1)
    unet = build_unet(config, 8, classes=3).eval().requires_grad_(False)
    unet.class_embedding.weight.mul_(100)  # so that a class makes a difference without training
    condition = Condition("labels", embeddings=4, null=3)
    return dataclasses.replace(model, unet=unet, condition=condition)


@torch.inference_mode()
def test_encode_and_decode_are_the_forward_of_a_unet_with_classes(conditional):
    x_BCHW = torch.randn(4, 3, 8, 8)
    classes_B = torch.tensor([0, 2, 3, 1])
    halves = decode(conditional.unet, encode(conditional.unet, x_BCHW, 321, classes_B))
    assert torch.equal(halves, conditional.unet(x_BCHW, 321, class_labels=classes_B).sample)


def test_mixing_on_the_arc_is_slerp_at_the_samples_norm():
    generator = np.random.default_rng(0)
    sample = generator.standard_normal((3, 4, 2, 2))
    anchor = 5 * generator.standard_normal((3, 4, 2, 2))
    encoded = Encoded(torch.from_numpy(sample).float(), (), torch.empty(0))
    mixed = interpolate_on_arc(encoded, torch.from_numpy(anchor).float(), 0.3).bottleneck.numpy()

    for row in range(3):
        one = sample[row].ravel()
        norm = np.linalg.norm(one)
        other = anchor[row].ravel() / np.linalg.norm(anchor[row]) * norm

        # At 0.7 of the angle from the sample to the anchor, in the plane of the two
        angle = np.arccos(one @ other / norm**2)
        across = other - (other @ one) / norm**2 * one
        across *= norm / np.linalg.norm(across)
        expected = np.cos(0.7 * angle) * one + np.sin(0.7 * angle) * across
        np.testing.assert_allclose(mixed[row].ravel(), expected, atol=1e-5)
        assert np.linalg.norm(mixed[row]) == pytest.approx(norm, rel=1e-5)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_ends_of_the_arc_and_equal_features(weight):
    sample = torch.randn(2, 3, 2, 2)
    encoded = Encoded(sample, (), torch.empty(0))
    anchor = torch.randn(2, 3, 2, 2)
    scale = sample.flatten(1).norm(dim=1) / anchor.flatten(1).norm(dim=1)
    expected = sample if weight else anchor * scale[:, None, None, None]
    torch.testing.assert_close(interpolate_on_arc(encoded, anchor, weight).bottleneck, expected)

    same = interpolate_on_arc(encoded, 3 * sample, 0.4).bottleneck
    torch.testing.assert_close(same, sample)


def test_outside_of_its_window_the_anchor_has_no_part_and_no_pass(model, digits, monkeypatch):
    """At two of five timesteps the anchor is mixed in; its features are computed at those two only."""
    anchor = digits[0]
    settings = {"scheduler": "ddim", "steps": STEPS, "micro_batch": 1, "clip": False}
    config = SamplerConfig(**settings, weight=0.2, window=(799, 400))
    assert config.window == (400, 799)
    sampler = Sampler(model, config)
    passes = []
    monkeypatch.setattr(
        sampler, "encode", lambda x, t, classes: passes.append(t) or encode(model.unet, x, t)
    )
    found = sampler(anchor.image[None], [anchor.key], 1)
    assert sorted(passes) == sorted([*TIMESTEPS, 799, 599])
    assert mixing_timesteps(config, SCHEDULE) == [799, 599]

    # The same by hand
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    assert tuple(scheduler.timesteps.tolist()) == TIMESTEPS
    x0 = torch.from_numpy(anchor.image).permute(2, 0, 1)[None] / 127.5 - 1
    x = noise(anchor.key, 0, 0, Stream.INITIAL)
    for t in TIMESTEPS:
        with torch.inference_mode():
            encoded = encode(model.unet, x, t)
            if t in (799, 599):
                noised = scheduler.add_noise(
                    x0, noise(anchor.key, t, 0, Stream.SHARED_ANCHOR), torch.tensor([t])
                )
                bottleneck = encode(model.unet, noised, t).bottleneck
                mixed = 0.2 * encoded.bottleneck + 0.8 * bottleneck
                encoded = encoded._replace(bottleneck=mixed)
            x = scheduler.step(decode(model.unet, encoded), t, x).prev_sample

    expected = ((x.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(found[0, 0].astype(int) - expected).max() <= 1


def test_a_window_between_the_timesteps_is_refused(model):
    settings = {"scheduler": "ddim", "steps": STEPS, "window": (200, 300)}
    with pytest.raises(
        InputError, match=r"window is \[200, 300\], .* of the 5 timesteps 199 … 999"
    ):
        Sampler(model, SamplerConfig(**settings))
    Sampler(model, SamplerConfig(**settings, weight=1.0))
    with pytest.raises(ValidationError, match="window"):
        SamplerConfig.model_validate({"window": [-5, 300]})


@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0])
def test_guidance_goes_from_none_towards_the_class(conditional, digits, guidance):
    """Without the anchor's features (w = 1): diffusers' own forward, once with the class and once without."""
    anchor = digits[0]
    settings = {"scheduler": "ddim", "steps": STEPS, "micro_batch": 2, "clip": False, "weight": 1.0}
    sampler = Sampler(conditional, SamplerConfig(**settings, guidance=guidance))
    found = sampler(anchor.image[None], [anchor.key], 1, classes=[2])

    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    x = noise(anchor.key, 0, 0, Stream.INITIAL)
    for t in TIMESTEPS:
        with torch.inference_mode():
            of_class = conditional.unet(x, t, class_labels=torch.tensor([2])).sample
            of_none = conditional.unet(x, t, class_labels=torch.tensor([3])).sample
        epsilon = (1 - guidance) * of_none + guidance * of_class
        x = scheduler.step(epsilon, t, x).prev_sample

    expected = ((x.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(found[0, 0].astype(int) - expected).max() <= 1


def test_classes_and_guidance_change_images_and_padding_does_not(conditional, digits):
    images = np.stack([anchor.image for anchor in digits[:3]])
    keys = [anchor.key for anchor in digits[:3]]

    def made(classes, micro_batch=3, **settings):
        config = SamplerConfig(steps=2, micro_batch=micro_batch, **settings)
        return Sampler(conditional, config)(images, keys, 2, classes=classes).astype(int)

    plain = made([0, 1, 2])
    assert np.abs(made([0, 1, 2], micro_batch=7) - plain).mean() < 1
    other = made([0, 1, 1])
    assert np.array_equal(other[:2], plain[:2])
    assert (other[2] != plain[2]).mean() > 0.2
    assert (made([0, 1, 2], guidance=4.0) != plain).mean() > 0.2


def test_guidance_without_a_class_or_without_none_is_refused(model, conditional):
    config = SamplerConfig(guidance=2.0)
    with pytest.raises(InputError, match=r"guidance is 2, and .* has no classes"):
        Sampler(model, config)
    unknown = dataclasses.replace(conditional, condition=Condition("labels", embeddings=4))
    with pytest.raises(InputError, match=r"name that class in diffusion\.null_class"):
        Sampler(unknown, config)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("clip", [False, True])
def test_other_predictions_give_what_diffusers_makes_of_them(model, digits, prediction, clip):
    other = dataclasses.replace(model, noise_schedule={**SCHEDULE, "prediction_type": prediction})
    settings = {"scheduler": "ddim", "steps": STEPS, "micro_batch": 1, "weight": 1.0, "clip": clip}
    found = Sampler(other, SamplerConfig(**settings))(digits[0].image[None], [digits[0].key], 1)

    scheduler = DDIMScheduler(
        **SCHEDULE,
        prediction_type=prediction,
        clip_sample=clip,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(STEPS)
    x = noise(digits[0].key, 0, 0, Stream.INITIAL)
    for t in TIMESTEPS:
        with torch.inference_mode():
            predicted = model.unet(x, t).sample
        x = scheduler.step(predicted, t, x, use_clipped_model_output=False).prev_sample

    expected = ((x.clamp(-1, 1) + 1) * 127.5).round()[0].permute(1, 2, 0).numpy()
    assert np.abs(found[0, 0].astype(int) - expected).max() <= 1


def test_the_loader_takes_the_three_predictions(model_folder, tmp_path):
    other = tmp_path / "model"
    shutil.copytree(model_folder, other)
    scheduler = other / "scheduler" / "scheduler_config.json"
    content = json.loads(scheduler.read_text())
    digests = set()
    for prediction in ("epsilon", "v_prediction", "sample"):
        scheduler.write_text(json.dumps({**content, "prediction_type": prediction}))
        digests.add(load_diffusion(str(other)).digest)
    assert len(digests) == 3

    scheduler.write_text(json.dumps({**content, "rescale_betas_zero_snr": True}))
    with pytest.raises(InputError, match="rescale_betas_zero_snr"):
        load_diffusion(str(other))


def test_settings_of_the_paper_are_recorded_as_before():
    paper = SamplerConfig(scheduler="ddim", steps=100, eta=0.1, share_anchor=False, clip=False)
    assert not {"mixing", "window", "guidance", "decode_batch"} & set(paper.recorded())
    assert not {"condition", "clusters", "null_class", "latent"} & set(DiffusionConfig().recorded())
    changed = SamplerConfig(mixing="slerp", window=(300, 900), guidance=1.5)
    assert SamplerConfig.from_record(changed.recorded()) == changed
    with pytest.raises(ValidationError, match="window"):
        SamplerConfig.model_validate({"window": [1, 2, 3]})


def test_the_noise_of_the_schedule_is_diffusers(model):
    """Check what the tests above take for granted."""
    assert torch.equal(
        DDPMScheduler(**SCHEDULE).alphas_cumprod, DDIMScheduler(**SCHEDULE).alphas_cumprod
    )
