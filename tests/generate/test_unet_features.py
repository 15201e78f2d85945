"""The features of a diffusion U-Net's blocks, against what diffusers' own forward computes."""

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.generate import UNetFeatures, block_names, default_block
from clsp.generate.keyed_noise import Stream, keyed_normal, noise_keys


def outputs_of_forward(unet, x_BCHW, timestep) -> dict[str, torch.Tensor]:
    """Return what each block puts out in diffusers' own forward pass."""
    blocks = {f"down{n}": block for n, block in enumerate(unet.down_blocks)}
    blocks["mid"] = unet.mid_block
    blocks |= {f"up{n}": block for n, block in enumerate(unet.up_blocks)}
    found = {}
    hooks = []
    for name, block in blocks.items():

        def keep(_, __, output, name=name):
            found[name] = output[0] if isinstance(output, tuple) else output

        hooks.append(block.register_forward_hook(keep))

    unet(x_BCHW, timestep)
    for hook in hooks:
        hook.remove()
    return found


@torch.inference_mode()
def test_features_are_the_means_of_the_blocks_outputs(model):
    images_BCHW = torch.rand(3, 3, 8, 8) * 2 - 1
    timestep = 120

    # x_t by hand: DDPM's linear schedule
    alpha_bar = np.prod(1 - np.linspace(1e-4, 0.02, 1000)[: timestep + 1])
    keys = noise_keys(0, ["features"], torch.device("cpu"))
    noise = keyed_normal(keys, (3, 8, 8), timestep, 0, Stream.SHARED_ANCHOR)
    x_BCHW = alpha_bar**0.5 * images_BCHW + (1 - alpha_bar) ** 0.5 * noise

    expected = outputs_of_forward(model.unet, x_BCHW.float(), timestep)
    assert list(expected) == block_names(model)
    for block, output in expected.items():
        features = UNetFeatures(model, block, timestep)(images_BCHW)
        torch.testing.assert_close(features, output.mean(dim=(2, 3)), atol=1e-5, rtol=1e-4)


def test_only_the_blocks_up_to_the_chosen_one_are_computed(model):
    calls = []
    hook = model.unet.up_blocks[0].register_forward_hook(lambda *_: calls.append("up0"))
    UNetFeatures(model, "mid", 50)(torch.zeros(1, 3, 8, 8))
    hook.remove()
    assert not calls


def test_blocks_and_timesteps_that_a_unet_lacks_are_refused(model):
    assert default_block(model) == "up0"
    with pytest.raises(InputError, match="no block up7, expected one of down0, down1, mid, up0"):
        UNetFeatures(model, "up7", 50)
    with pytest.raises(InputError, match="timesteps 0 … 999, expected one of them, found 1000"):
        UNetFeatures(model, "up1", 1000)
