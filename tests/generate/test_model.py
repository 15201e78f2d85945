import json
import shutil

import pytest
from clsp.core import InputError
from clsp.generate import load_diffusion
from diffusers import DDPMPipeline, UNet2DModel


def test_pipeline_and_bare_unet_have_one_digest(model_folder, tmp_path):
    """A hub model of the oldest form keeps the U-Net's and the scheduler's files at its root."""
    bare = tmp_path / "bare"
    shutil.copytree(model_folder / "unet", bare)
    shutil.copy(model_folder / "scheduler" / "scheduler_config.json", bare)
    assert load_diffusion(str(bare), 8).digest == load_diffusion(str(model_folder), 8).digest


def test_digest_follows_the_weights_and_the_noise_schedule(model_folder, tmp_path):
    before = load_diffusion(str(model_folder), 8).digest
    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    unet = UNet2DModel.from_pretrained(other, subfolder="unet")
    unet.conv_out.bias.data[0] += 1e-3
    unet.save_pretrained(other / "unet")
    assert load_diffusion(str(other), 8).digest != before
    shutil.copytree(model_folder, other, dirs_exist_ok=True)
    assert load_diffusion(str(other), 8).digest == before
    scheduler = other / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps({**json.loads(scheduler.read_text()), "beta_end": 0.03}))
    assert load_diffusion(str(other), 8).digest != before


def test_diffusers_loads_the_same_folder(model_folder):
    assert isinstance(DDPMPipeline.from_pretrained(model_folder).unet, UNet2DModel)


def test_models_that_do_not_fit_are_refused(model_folder, tmp_path):
    with pytest.raises(InputError, match="8 pixels, the anchors have 32"):
        load_diffusion(str(model_folder), 32)
    with pytest.raises(InputError, match="does not exist"):
        load_diffusion(str(tmp_path / "nowhere"), 8)
    with pytest.raises(InputError, match="neither as a folder nor on the hub"):
        load_diffusion("nobody/no-such-model", 8)
    other = tmp_path / "v"
    shutil.copytree(model_folder, other)
    scheduler = other / "scheduler" / "scheduler_config.json"
    scheduler.write_text(
        json.dumps({**json.loads(scheduler.read_text()), "prediction_type": "flow_prediction"})
    )
    with pytest.raises(InputError, match="predicts flow_prediction, expected epsilon"):
        load_diffusion(str(other), 8)
    config = other / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "in_channels": 1}))
    with pytest.raises(InputError, match="channels"):
        load_diffusion(str(other), 8)


def test_weights_that_do_not_fit_are_refused_not_replaced_by_random_ones(model_folder, tmp_path):
    import safetensors.torch

    other = tmp_path / "other"
    shutil.copytree(model_folder, other)
    path = other / "unet" / "diffusion_pytorch_model.safetensors"
    weights = safetensors.torch.load_file(path)
    weights.pop("conv_out.weight")
    safetensors.torch.save_file(weights, path)
    with pytest.raises(InputError, match="conv_out.weight"):
        load_diffusion(str(other), 8)


def test_a_missing_noise_schedule_is_not_guessed(model_folder, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(model_folder / "unet", bare)
    with pytest.raises(InputError, match="no scheduler_config.json"):
        load_diffusion(str(bare), 8)
