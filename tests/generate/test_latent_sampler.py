"""Positives of a latent model against diffusers' own autoencoder, equations by hand and diffusers' own pipeline."""

import weakref

import numpy as np
import pytest
import torch
from clsp.core import InputError, WorkError
from clsp.generate import (
    Autoencoder,
    DiffusionModel,
    LatentSpace,
    Sampler,
    SamplerConfig,
    Stream,
    check_clip,
    decode,
    encode,
    encode_anchors,
    keyed_normal,
    load_autoencoder,
    load_diffusion,
    noise_keys,
    read_autoencoder,
)
from clsp.generate.out_of_memory import explaining_out_of_memory as out_of_memory
from clsp.shards import AnchorsConfig, ImageSource
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, LDMPipeline
from latent_models import (
    SCALING,
    SIZE,
    as_pixels,
    in_model_range,
    save_autoencoder,
    save_ldm,
    save_unet,
)

SHAPE = (4, SIZE // 2, SIZE // 2)


@pytest.fixture(scope="module")
def anchors() -> ImageSource:
    return ImageSource(AnchorsConfig(limit=10, size=SIZE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture
def model(folder, anchors, tmp_path) -> DiffusionModel:
    """A latent model with random weights and the true range of the anchors' latents."""
    import dataclasses

    loaded = load_diffusion(str(save_unet(tmp_path / "unet")), SIZE, latent=str(folder))
    assert loaded.latent is not None
    training = encode_anchors(anchors, loaded.latent.autoencoder, tmp_path, flip=False)
    return dataclasses.replace(loaded, latent=training.space)


def batch_of(anchors, count: int) -> tuple[np.ndarray, list[str]]:
    return np.stack([anchor.image for anchor in anchors[:count]]), [
        anchor.key for anchor in anchors[:count]
    ]


def test_candidates_are_diffusers_images_of_the_last_latents(model, folder, anchors, monkeypatch):
    latents = []
    original = Sampler._sample

    def sample(self, *arguments):
        latents.append(original(self, *arguments))
        return latents[-1]

    monkeypatch.setattr(Sampler, "_sample", sample)
    sampler = Sampler(model, SamplerConfig(steps=3, micro_batch=6, decode_batch=4))
    images, keys = batch_of(anchors, 5)
    found = sampler(images, keys, candidates=3)
    assert (found.shape, found.dtype) == ((5, 3, SIZE, SIZE, 3), np.uint8)

    vae = AutoencoderKL.from_pretrained(folder).eval()
    assert latents[0].shape == (3, 6, *SHAPE)
    for candidate in range(3):
        with torch.no_grad():
            expected = as_pixels(vae.decode(latents[0][candidate, :5].clone() / SCALING).sample)
        difference = np.abs(found[:, candidate].astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() < 0.001


@pytest.mark.parametrize("clip", [False, True])
def test_one_step_agrees_with_the_equations(model, folder, anchors, clip):
    """DDIM from t = 999 to x0 at once, all by hand: the anchor's latent, its noise, the mixing and the clipping."""
    settings = {"scheduler": "ddim", "steps": 1, "eta": 0, "weight": 0.3, "clip": clip}
    sampler = Sampler(model, SamplerConfig(**settings, micro_batch=2))
    images, keys = batch_of(anchors, 2)
    found = sampler(images, keys, candidates=1)[:, 0]

    vae = AutoencoderKL.from_pretrained(folder).eval()
    alpha_bar = float(DDPMScheduler().alphas_cumprod[999])
    keys_B2 = noise_keys(0, keys, torch.device("cpu"))
    x = keyed_normal(keys_B2, SHAPE, 0, 0, Stream.INITIAL)
    noise = keyed_normal(keys_B2, SHAPE, 999, 0, Stream.SHARED_ANCHOR)
    with torch.no_grad():
        x0_anchor = vae.encode(in_model_range(images)).latent_dist.mode() * SCALING
        x_anchor = alpha_bar**0.5 * x0_anchor + (1 - alpha_bar) ** 0.5 * noise
        sample = encode(model.unet, x, 999)
        anchor = encode(model.unet, x_anchor, 999)
        h = 0.3 * sample.bottleneck + 0.7 * anchor.bottleneck
        epsilon = decode(model.unet, sample._replace(bottleneck=h))
        x0 = (x - (1 - alpha_bar) ** 0.5 * epsilon) / alpha_bar**0.5
        if clip:
            for channel, (lowest, highest) in enumerate(model.latent.ranges):
                x0[:, channel] = x0[:, channel].clamp(lowest, highest)
        expected = as_pixels(vae.decode(x0 / SCALING).sample)

    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.02
    assert len(np.unique(found)) > 10


@pytest.mark.parametrize("scheduler", ["ddim", "unipc", "dpmsolver++"])
def test_clipped_latents_end_in_the_range_of_the_anchors(model, anchors, monkeypatch, scheduler):
    ends = {}
    original = Sampler._sample

    def sample(self, *arguments):
        ends[self.config.clip] = original(self, *arguments)
        return ends[self.config.clip]

    monkeypatch.setattr(Sampler, "_sample", sample)
    images, keys = batch_of(anchors, 4)
    for clip in (False, True):
        config = SamplerConfig(scheduler=scheduler, steps=5, clip=clip, micro_batch=4)
        Sampler(model, config)(images, keys, 2)

    lowest, highest = torch.tensor(model.latent.ranges).unbind(dim=1)
    outside = {
        clip: (x < lowest[:, None, None] - 1e-4) | (x > highest[:, None, None] + 1e-4)
        for clip, x in ends.items()
    }
    assert outside[False].float().mean() > 0.2  # an untrained model's
    assert not outside[True].any()


def test_candidates_depend_neither_on_how_many_there_are_nor_on_their_neighbours(model, anchors):
    sampler = Sampler(model, SamplerConfig(steps=2, micro_batch=8, decode_batch=3))
    images, keys = batch_of(anchors, 8)
    four = sampler(images, keys, candidates=4)
    np.testing.assert_array_equal(sampler(images, keys, candidates=2), four[:, :2])
    np.testing.assert_array_equal(sampler(images, keys, candidates=1, first=3), four[:, 3:])
    np.testing.assert_array_equal(sampler(images[:5], keys[:5], candidates=4), four[:5])


def test_few_images_are_decoded_at_a_time(model, anchors, monkeypatch):
    alive: list[weakref.ref] = []
    seen = []
    original = Autoencoder._decode

    def counted(self, latents):
        decoded = original(self, latents)
        alive.append(weakref.ref(decoded))
        kept = [tensor for tensor in (ref() for ref in alive) if tensor is not None]
        seen.append(sum(map(len, kept)))
        return decoded

    monkeypatch.setattr(Autoencoder, "_decode", counted)
    for anchor_count, candidates in ((10, 1), (10, 6), (3, 6)):
        seen.clear()
        config = SamplerConfig(steps=1, micro_batch=10, decode_batch=2)
        images, keys = batch_of(anchors, anchor_count)
        Sampler(model, config)(images, keys, candidates)
        assert len(seen) == candidates * -(-anchor_count // 2)
        assert max(seen) <= 4  # this batch, and the one before until it is let go

    seen.clear()
    images, keys = batch_of(anchors, 2)
    Sampler(model, SamplerConfig(steps=1, micro_batch=2))(images, keys, 1)
    assert seen == [2]  # a micro-batch is not filled up to decode_batch


def test_values_that_are_not_finite_are_named_by_anchor(model, anchors, monkeypatch):
    images, keys = batch_of(anchors, 3)
    sampler = Sampler(model, SamplerConfig(steps=1, micro_batch=3, decode_batch=2))
    for name, message in (
        ("_encode", "the autoencoder gave latents that are not finite for the anchors"),
        ("_decode", "the autoencoder gave pixels that are not finite for the anchors"),
    ):
        original = getattr(Autoencoder, name)

        def broken(self, rows, original=original):
            result = original(self, rows)
            result[1] = float("nan")  # of each call: the second of two, and none of the last
            return result

        with monkeypatch.context() as patch:
            patch.setattr(Autoencoder, name, broken)
            with pytest.raises(WorkError, match=f"{message} train_00000001$"):
                sampler(images, keys, 1)

    torch.nn.init.constant_(model.unet.conv_out.bias, float("nan"))
    with pytest.raises(WorkError, match="diffusion model gave latents that are not finite"):
        sampler(images, keys, 1)


def test_an_ldm_pipeline_makes_what_diffusers_makes_of_it(anchors, tmp_path, monkeypatch):
    """Without anchors (w = 1), with our noise in the place of the pipeline's."""
    scheduler = DDIMScheduler(timestep_spacing="trailing", clip_sample=False)
    folder = save_ldm(tmp_path / "ldm", scheduler)
    model = load_diffusion(str(folder), SIZE)
    settings = {"scheduler": "ddim", "steps": 5, "eta": 0, "weight": 1, "clip": False}
    images, keys = batch_of(anchors, 2)
    found = Sampler(model, SamplerConfig(**settings, micro_batch=2))(images, keys, 1)[:, 0]

    def noise(shape, **options):
        assert shape == (2, 3, SIZE // 2, SIZE // 2)
        keys_B2 = noise_keys(0, keys, torch.device("cpu"))
        return keyed_normal(keys_B2, shape[1:], 0, 0, Stream.INITIAL)

    pipeline = LDMPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    monkeypatch.setitem(type(pipeline).__call__.__wrapped__.__globals__, "randn_tensor", noise)
    made = pipeline(batch_size=2, num_inference_steps=5, output_type="np").images
    difference = np.abs(found.astype(int) - np.rint(made * 255))
    # A latent between two entries of the codebook may fall to another one by rounding
    assert (difference > 1).mean() < 0.05


def test_clipping_needs_a_range(anchors, tmp_path):
    model = load_diffusion(str(save_ldm(tmp_path)), SIZE)
    check_clip(model, clip=False)
    for refused in (lambda: check_clip(model, clip=True), lambda: Sampler(model, SamplerConfig())):
        with pytest.raises(InputError, match=r"sampler.clip is true.*set sampler.clip=false"):
            refused()


def test_the_digest_follows_the_autoencoder_and_the_range(model, folder, tmp_path):
    unet = save_unet(tmp_path / "again")
    digests = {load_diffusion(str(unet), latent=str(folder)).digest}
    other = save_autoencoder(tmp_path / "other", seed=1)
    digests.add(load_diffusion(str(unet), latent=str(other)).digest)
    assert len(digests) == 2

    autoencoder = load_autoencoder(read_autoencoder(str(folder)))
    facts = [LatentSpace(autoencoder, ranges).facts for ranges in (None, model.latent.ranges)]
    assert facts[0] != facts[1]


@pytest.mark.parametrize(("decode_batch", "is_advised"), [(2, True), (1, False)])
def test_out_of_memory_a_smaller_batch_of_decoding_is_advised(model, decode_batch, is_advised):
    config = SamplerConfig(steps=1, micro_batch=4, decode_batch=decode_batch)
    sampler = Sampler(model, config)
    with pytest.raises(WorkError, match="micro_batch=4") as error, out_of_memory(sampler, SIZE):
        raise torch.OutOfMemoryError("CUDA out of memory")
    assert ("or a sampler.decode_batch below 2" in str(error.value)) == is_advised
    assert "decode_batch below 1" not in str(error.value)
