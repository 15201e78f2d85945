"""The sampler against an independent computation: the equations in numpy and float64, own U-Net calls."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from clsp.core import WorkError
from clsp.generate import Sampler, SamplerConfig, Stream, decode, encode, keyed_normal, noise_keys
from clsp.generate.schedulers import clip_predicted_x0, make_scheduler
from clsp.shards import ShardSet
from diffusers import DDIMScheduler, DDPMScheduler

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}


def noise(key: str, timestep: int, candidate: int, stream: Stream, seed: int = 0) -> np.ndarray:
    keys = noise_keys(seed, [key], torch.device("cpu"))
    return keyed_normal(keys, (3, 8, 8), timestep, candidate, stream).double().numpy()


def reference_positive(
    unet, anchor_HWC: np.ndarray, key: str, candidate: int, config: SamplerConfig
) -> np.ndarray:
    """One candidate: β linear 1e-4 … 0.02, timesteps 999, 989, …, DDIM with η, h = w·h_s + (1-w)·h_a."""
    # diffusers' float32 table: in float64 ᾱ is another one at the noisiest steps, by up to 0.3 grey levels at the end.
    alpha_bar = DDPMScheduler(**SCHEDULE).alphas_cumprod.double().numpy()
    stride = 1000 // config.steps
    x0 = anchor_HWC.transpose(2, 0, 1)[None] / 127.5 - 1
    x = noise(key, 0, candidate, Stream.INITIAL)
    for t in range(999, 0, -stride):
        a, previous = alpha_bar[t], alpha_bar[t - stride] if t >= stride else 1.0
        stream, index = (
            (Stream.SHARED_ANCHOR, 0) if config.share_anchor else (Stream.ANCHOR, candidate)
        )
        x_anchor = np.sqrt(a) * x0 + np.sqrt(1 - a) * noise(key, t, index, stream)
        with torch.inference_mode():
            sample = encode(unet, torch.from_numpy(x).float(), t)
            anchor = encode(unet, torch.from_numpy(x_anchor).float(), t)
            h = config.weight * sample.bottleneck + (1 - config.weight) * anchor.bottleneck
            epsilon = decode(unet, sample._replace(bottleneck=h)).double().numpy()
        predicted_x0 = (x - np.sqrt(1 - a) * epsilon) / np.sqrt(a)
        if config.clip:
            predicted_x0 = predicted_x0.clip(-1, 1)
        sigma = config.eta * np.sqrt((1 - previous) / (1 - a)) * np.sqrt(1 - a / previous)
        x = np.sqrt(previous) * predicted_x0 + np.sqrt(1 - previous - sigma**2) * epsilon
        x = x + sigma * noise(key, t, candidate, Stream.STEP)
    return np.rint((x.clip(-1, 1) + 1) * 127.5)[0].transpose(1, 2, 0)


@pytest.mark.slow
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("share_anchor", [False, True])
@pytest.mark.parametrize(("weight", "eta"), [(0.1, 0.1), (0.0, 0.0), (0.5, 1.0)])
def test_positives_agree_with_the_papers_equations(
    trained_model, digits, weight, eta, share_anchor, clip
):
    settings = {"weight": weight, "eta": eta, "share_anchor": share_anchor, "clip": clip}
    config = SamplerConfig(scheduler="ddim", steps=20, micro_batch=4, **settings)
    anchors = digits[:3]
    images = np.stack([anchor.image for anchor in anchors])
    found = Sampler(trained_model, config)(images, [anchor.key for anchor in anchors], candidates=2)
    for row, anchor in enumerate(anchors):
        for candidate in range(2):
            expected = reference_positive(
                trained_model.unet, anchor.image, anchor.key, candidate, config
            )
            difference = np.abs(found[row, candidate].astype(int) - expected)
            assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def test_the_papers_timesteps():
    scheduler = make_scheduler(
        SamplerConfig(scheduler="ddim", steps=100), {"num_train_timesteps": 1000}
    )
    assert scheduler.timesteps.tolist() == list(range(999, 0, -10))
    assert not scheduler.config.clip_sample


def test_candidates_do_not_depend_on_how_many_there_are(model, digits):
    sampler = Sampler(model, SamplerConfig(steps=4, micro_batch=4))
    images, keys = (
        np.stack([anchor.image for anchor in digits[:4]]),
        [anchor.key for anchor in digits[:4]],
    )
    eight = sampler(images, keys, candidates=8)
    assert np.array_equal(sampler(images, keys, candidates=4), eight[:, :4])
    assert np.array_equal(sampler(images, keys, candidates=4, first=4), eight[:, 4:])
    assert not np.array_equal(eight[:, 0], eight[:, 1])


PAPER = {"scheduler": "ddim", "eta": 0.1, "share_anchor": False, "clip": False}


def assert_equal_up_to_rounding(first: np.ndarray, second: np.ndarray) -> None:
    """The bound of docs/scale.md: one grey level, in one pixel of a thousand."""
    assert np.abs(first.astype(int) - second).max() <= 1
    assert (first != second).any(axis=-1).mean() <= 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, PAPER], ids=["default", "paper"])
def test_another_micro_batch_or_thread_count_changes_images_by_rounding_only(
    trained_model, digits, settings
):
    anchors = digits[:32]
    images, keys = (
        np.stack([anchor.image for anchor in anchors]),
        [anchor.key for anchor in anchors],
    )
    whole = Sampler(trained_model, SamplerConfig(**settings, micro_batch=32))(images, keys, 4)
    assert whole.std() > 30  # images of digits, not noise clipped to black and white or flat grey
    smaller = Sampler(trained_model, SamplerConfig(**settings, micro_batch=5))
    parts = [smaller(images[i : i + 5], keys[i : i + 5], 4) for i in range(0, 32, 5)]
    assert_equal_up_to_rounding(whole, np.concatenate(parts))
    assert_equal_up_to_rounding(
        whole,
        Sampler(trained_model, SamplerConfig(**settings, micro_batch=32, threads=2))(
            images, keys, 4
        ),
    )


def test_the_number_of_threads_is_pinned_while_it_works(model, digits, monkeypatch):
    seen, sampler = set(), Sampler(model, SamplerConfig(steps=2, micro_batch=2, threads=3))
    original, before = sampler.encode, torch.get_num_threads()
    sampler.encode = lambda *arguments: (seen.add(torch.get_num_threads()), original(*arguments))[1]
    sampler(
        np.stack([anchor.image for anchor in digits[:2]]), [anchor.key for anchor in digits[:2]], 1
    )
    assert seen == {3} and torch.get_num_threads() == before


def test_a_shard_of_another_size_holds_the_same_images(make_set, shard_set, tmp_path):
    """16 anchors a shard there, 20 here: the micro-batches of 8 hold other anchors together."""
    other, one = ShardSet(make_set(tmp_path / "set", records=20)), ShardSet(shard_set)
    for position in range(40):
        for candidate in range(3):
            difference = one.candidate(position, candidate).astype(int) - other.candidate(
                position, candidate
            )
            assert np.abs(difference).max() <= 1


def test_weight_one_ignores_the_anchor(model, digits):
    sampler = Sampler(model, SamplerConfig(steps=4, weight=1.0, micro_batch=1))
    first, other = digits[0], digits[1]
    assert np.array_equal(
        sampler(first.image[None], [first.key], 1), sampler(other.image[None], [first.key], 1)
    )


def test_a_clipped_step_is_diffusers_own_for_ddim():
    """`clip_sample` clamps x0 and keeps ε, as `clip_predicted_x0` does before a plain step."""
    generator = torch.Generator().manual_seed(0)
    x, epsilon = (3 * torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2))
    config = SamplerConfig(scheduler="ddim", steps=20, clip=True)
    plain = make_scheduler(config, SCHEDULE)
    clipping = DDIMScheduler(**SCHEDULE, timestep_spacing="trailing", clip_sample=True)
    clipping.set_timesteps(20)
    for timestep in plain.timesteps.tolist():
        alpha_bar = float(plain.alphas_cumprod[timestep])
        ours = plain.step(epsilon, timestep, clip_predicted_x0(x, epsilon, alpha_bar)).prev_sample
        assert torch.allclose(ours, clipping.step(epsilon, timestep, x).prev_sample, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddim", "unipc", "dpmsolver++"])
def test_clipping_keeps_the_digits_of_a_briefly_trained_model_grey(
    trained_model, digits, scheduler
):
    images, keys = np.stack([anchor.image for anchor in digits]), [anchor.key for anchor in digits]

    def coloured(clip: bool) -> float:
        """The share of pixels whose channels lie a quarter of the range apart."""
        config = SamplerConfig(scheduler=scheduler, steps=16, eta=0.0, clip=clip, micro_batch=40)
        made = Sampler(trained_model, config)(images, keys, 2).astype(int)
        return float((made.max(axis=-1) - made.min(axis=-1) > 64).mean())

    assert coloured(clip=False) > 0.5
    assert coloured(clip=True) < 0.2


@pytest.mark.parametrize("scheduler", ["unipc", "dpmsolver++"])
def test_solvers_keep_their_state_per_candidate(model, digits, scheduler):
    sampler = Sampler(model, SamplerConfig(steps=5, eta=0.0, scheduler=scheduler, micro_batch=2))
    images, keys = (
        np.stack([anchor.image for anchor in digits[:2]]),
        [anchor.key for anchor in digits[:2]],
    )
    together = sampler(images, keys, 2)
    assert np.array_equal(together[:, 1:], sampler(images, keys, 1, first=1))


def test_values_that_are_not_finite_are_named(model, digits):
    broken = dataclasses.replace(model, unet=copy.deepcopy(model.unet))
    torch.nn.init.constant_(broken.unet.conv_out.bias, float("nan"))
    with pytest.raises(WorkError, match="train_00000000"):
        Sampler(broken, SamplerConfig(steps=2, micro_batch=1))(
            digits[0].image[None], [digits[0].key], 1
        )
