"""Frozen autoencoders against diffusers' own encode and decode."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from clsp.core import InputError
from clsp.generate import Autoencoder, load_autoencoder, read_autoencoder
from diffusers import AutoencoderKL, UNet2DModel, VQModel
from latent_models import SCALING, SIZE, save_autoencoder, vq_model


def loaded(path) -> Autoencoder:
    return load_autoencoder(read_autoencoder(str(path)))


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("shift", [None, 0.25])
def test_latents_and_images_are_those_of_diffusers(tmp_path, shift):
    folder = save_autoencoder(tmp_path / "kl", shift_factor=shift)
    autoencoder = loaded(folder)
    vae = AutoencoderKL.from_pretrained(folder).eval()
    x = images(5)
    with torch.no_grad():
        latents = (vae.encode(x).latent_dist.mode() - (shift or 0)) * SCALING
        pixels = vae.decode(latents / SCALING + (shift or 0)).sample

    assert latents.shape == (5, 4, SIZE // 2, SIZE // 2)
    torch.testing.assert_close(autoencoder.encode(x, batch=2), latents, atol=1e-4, rtol=1e-4)
    found = torch.cat(list(autoencoder.decode(latents, batch=2)))
    torch.testing.assert_close(found, pixels, atol=1e-4, rtol=1e-4)


def test_a_vq_model_gives_its_latents_before_they_are_quantized(tmp_path):
    vq_model().save_pretrained(tmp_path)
    autoencoder = loaded(tmp_path)
    net = VQModel.from_pretrained(tmp_path).eval()
    x = images(3)
    with torch.no_grad():
        latents = net.encode(x).latents * SCALING
        pixels = net.decode(latents / SCALING).sample

    assert (autoencoder.config.channels, autoencoder.config.factor) == (3, 2)
    torch.testing.assert_close(autoencoder.encode(x), latents, atol=1e-4, rtol=1e-4)
    found = torch.cat(list(autoencoder.decode(latents)))
    torch.testing.assert_close(found, pixels, atol=1e-4, rtol=1e-4)


def test_the_bits_of_an_image_do_not_depend_on_those_beside_it(tmp_path):
    autoencoder = loaded(save_autoencoder(tmp_path))
    x = images(4)
    others = torch.cat([images(2, seed=1), x[2:3]])
    latents = autoencoder.encode(x, batch=4)
    assert torch.equal(autoencoder.encode(others, batch=4)[2], latents[2])
    assert torch.equal(autoencoder.encode(x[:3], batch=4), latents[:3])

    pixels = torch.cat(list(autoencoder.decode(latents, batch=4)))
    (alone,) = autoencoder.decode(latents[:1], batch=4)
    assert torch.equal(alone[0], pixels[0])


def test_decoding_leaves_torch_as_it_was_between_its_batches(tmp_path):
    autoencoder = loaded(save_autoencoder(tmp_path))
    latents = autoencoder.encode(images(4))
    batches = autoencoder.decode(latents, batch=2)
    next(batches)
    assert not torch.is_inference_mode_enabled()
    weight = torch.ones(1, requires_grad=True)
    (weight * 2).backward()  # as a training does behind a grid


def test_the_digest_is_of_weights_and_configuration_wherever_they_lie(tmp_path):
    root = save_autoencoder(tmp_path / "root")
    inside = save_autoencoder(tmp_path / "pipeline" / "vae").parent
    digest = loaded(root).digest
    assert loaded(inside).digest == digest
    assert loaded(save_autoencoder(tmp_path / "weights", seed=1)).digest != digest
    assert loaded(save_autoencoder(tmp_path / "scaling", scaling_factor=2.0)).digest != digest


def test_weights_that_do_not_fit_are_refused(tmp_path):
    folder = save_autoencoder(tmp_path)
    path = folder / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights.pop("decoder.conv_out.weight")
    safetensors.torch.save_file(weights, path)
    with pytest.raises(InputError, match=r"autoencoder .*do not fit.*decoder.conv_out.weight"):
        loaded(folder)


@pytest.mark.parametrize("damage", ["absent", "cut", "other shape"])
def test_weights_that_cannot_be_loaded_are_refused(tmp_path, damage, capfd):
    folder = save_autoencoder(tmp_path)
    path = folder / "diffusion_pytorch_model.safetensors"
    if damage == "absent":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        config = folder / "config.json"
        content = json.loads(config.read_text()) | {"latent_channels": 3}
        config.write_text(json.dumps(content))

    with pytest.raises(
        InputError, match=r"autoencoder .*: its weights (cannot be|do not)"
    ) as error:
        loaded(folder)
    assert "\n" not in str(error.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "AutoencoderTiny"}, "is of AutoencoderTiny, expected AutoencoderKL or VQ"),
        ({"in_channels": 1}, r"has \(1, 3\) channels in and out"),
        ({"latents_mean": [0.1] * 4}, "scaled by scaling_factor alone"),
    ],
)
def test_other_networks_are_refused(tmp_path, changes, message):
    path = save_autoencoder(tmp_path) / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=message):
        read_autoencoder(str(tmp_path))


def test_what_is_no_autoencoder_is_refused(tmp_path, model_folder):
    with pytest.raises(InputError, match="no config.json or vae/config.json or vqvae/config.json"):
        read_autoencoder(str(tmp_path))
    with pytest.raises(InputError, match="neither as a folder nor on the hub"):
        read_autoencoder("nobody/no-such-autoencoder")
    shutil.copytree(model_folder / "unet", tmp_path / "unet")
    assert isinstance(UNet2DModel.from_pretrained(tmp_path / "unet"), UNet2DModel)
    with pytest.raises(InputError, match="is of UNet2DModel, expected AutoencoderKL"):
        read_autoencoder(str(tmp_path / "unet"))


def test_sizes_that_it_does_not_divide_are_refused(tmp_path):
    config = read_autoencoder(str(save_autoencoder(tmp_path)))
    assert config.latent_size(SIZE) == SIZE // 2
    with pytest.raises(InputError, match=r"17 pixels cannot be divided by 2.*a multiple of 2"):
        config.latent_size(17)


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_images_decoded_in_bfloat16_stay_near(tmp_path, kind):
    if kind == "kl":
        save_autoencoder(tmp_path)
    else:
        vq_model().save_pretrained(tmp_path)

    exact = loaded(tmp_path)
    latents = exact.encode(images(2))
    pixels = torch.cat(list(exact.decode(latents)))
    half = loaded(tmp_path).to("cpu", torch.bfloat16)
    found = torch.cat(list(half.decode(latents)))
    assert found.dtype == torch.float32
    difference = (found - pixels).square().mean(dim=(1, 2, 3)).sqrt()
    assert 0 < difference.min() < 0.1 * pixels.std()
