import pytest
import torch
from clsp.core import InputError
from clsp.generate import DiffusionConfig, build_unet, decode, encode, interpolate
from clsp.generate.interpolation import check_unet_config
from diffusers import UNet2DModel

SHAPES = {
    "tiny": (DiffusionConfig(channels=(32, 64), attention=(False, True), blocks=1, dropout=0.0), 8),
    "cifar10": (DiffusionConfig(), 32),
    "one level": (DiffusionConfig(channels=(32,), attention=(True,), blocks=2), 8),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("timestep", [0, 9, 999])
def test_decode_of_encode_is_the_forward_to_the_last_bit(name, timestep):
    config, size = SHAPES[name]
    torch.manual_seed(0)
    unet = build_unet(config, size).eval()
    x = torch.randn(2, 3, size, size)
    with torch.inference_mode():
        assert torch.equal(decode(unet, encode(unet, x, timestep)), unet(x, timestep).sample)


def test_interpolation_mixes_the_bottleneck_and_keeps_the_skips():
    torch.manual_seed(0)
    unet = build_unet(SHAPES["tiny"][0], 8).eval()
    with torch.inference_mode():
        sample, anchor = (encode(unet, torch.randn(2, 3, 8, 8), 99) for _ in range(2))
    mixed = interpolate(sample, anchor.bottleneck, 0.1)
    expected = 0.1 * sample.bottleneck.numpy() + 0.9 * anchor.bottleneck.numpy()
    torch.testing.assert_close(mixed.bottleneck, torch.from_numpy(expected), atol=1e-6, rtol=1e-6)
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(mixed.skips, sample.skips, strict=True)
    )
    assert torch.equal(interpolate(sample, anchor.bottleneck, 1.0).bottleneck, sample.bottleneck)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type"),
        ({"down_block_types": ("SkipDownBlock2D", "SkipDownBlock2D")}, "blocks"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
    ],
)
def test_networks_that_do_not_split_are_refused(change, named):
    config = dict(
        UNet2DModel(
            block_out_channels=(32, 32),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
        ).config
    )
    check_unet_config(config, "model")
    with pytest.raises(InputError, match=named):
        check_unet_config({**config, **change}, "model")
