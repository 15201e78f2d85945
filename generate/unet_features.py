"""The diffusion U-Net as an encoder: features of its blocks (DDAE, Xiang et al., ICCV 2023).

Shape legend: B batch, C channels, H, W pixels, F features.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ..core import InputError
from .config import SamplerConfig
from .interpolation import embed_time
from .keyed_noise import Stream, keyed_normal, noise_keys
from .model import DiffusionModel
from .schedulers import make_scheduler, noise_to

TIMESTEP = 100
"""The default: noise enough that the network looks at the whole, little enough that the image is what it was."""


def block_names(model: DiffusionModel) -> list[str]:
    """Return the names of a U-Net's blocks in the order of its forward pass: `down0` …, `mid`, `up0` …

    >>> from clsp.generate.example import make_example_model
    >>> block_names(make_example_model(size=8))
    ['down0', 'down1', 'mid', 'up0', 'up1']
    """
    net: Any = model.unet
    downs = [f"down{number}" for number in range(len(net.down_blocks))]
    middle = [] if net.mid_block is None else ["mid"]
    ups = [f"up{number}" for number in range(len(net.up_blocks))]
    return [*downs, *middle, *ups]


def default_block(model: DiffusionModel) -> str:
    """Return the block whose features are taken where nobody chose one: two thirds of the way up the decoder.

    Of four up blocks that is the third, whose features were the best of the paper's 35.7 M network on CIFAR-10 (DDAE);
    of two or three it is the one before the last: the last one's features are of pixels.
    """
    net: Any = model.unet
    return f"up{2 * (len(net.up_blocks) - 1) // 3}"


class UNetFeatures(nn.Module):
    """Turns images into the pooled features of a block of a diffusion U-Net at a timestep.

    The image is noised to the timestep with the same noise always, so that its features depend on it alone. A U-Net
    with classes is told «no class»; one of latents gets the image's latent.

    Args:
        block: of `block_names`.
        timestep: from 0 (the image) to 999 (noise).

    Raises:
        InputError: the U-Net has no such block or timestep, or cannot be told «no class».

    >>> from clsp.generate.example import make_example_model
    >>> features = UNetFeatures(make_example_model(size=8), "mid", 50)
    >>> features(torch.zeros(4, 3, 8, 8)).shape
    torch.Size([4, 32])
    """

    noise: torch.Tensor

    def __init__(self, model: DiffusionModel, block: str, timestep: int):
        super().__init__()
        names = block_names(model)
        if block not in names:
            raise InputError(
                f"{model.origin} has no block {block}, expected one of {', '.join(names)}"
            )

        self.unet = model.unet
        self.autoencoder = model.latent.autoencoder if model.latent else None
        # A part of this module, so that it goes along to a device
        self.autoencoder_net = self.autoencoder.net if self.autoencoder else None
        self.block = block
        self.timestep = timestep
        self.null = _null_class(model)
        self.alpha_bar = _alpha_bar(model, timestep)

        # The noise of every image
        keys_12 = noise_keys(0, ["features"], torch.device("cpu"))
        noise_1CHW = keyed_normal(keys_12, model.sample_shape, timestep, 0, Stream.SHARED_ANCHOR)
        self.register_buffer("noise", noise_1CHW, persistent=False)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        """Return features `(B, F)`, a mean over the pixels of each of the block's channels.

        Args:
            images_BCHW: in [-1, 1].
        """
        for name, features_BF in self.of_all_blocks(images_BCHW):
            if name == self.block:
                return features_BF
        raise AssertionError(self.block)

    def of_all_blocks(self, images_BCHW: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the name and the pooled features of every block, as far as they are asked for."""
        x0_BCHW = self.autoencoder.encode(images_BCHW) if self.autoencoder else images_BCHW
        x_BCHW = noise_to(x0_BCHW, self.noise, self.alpha_bar)
        classes_B = None
        if self.null is not None:
            classes_B = torch.full((len(x_BCHW),), self.null, device=x_BCHW.device)

        for name, hidden in activations(self.unet, x_BCHW, self.timestep, classes_B):
            yield name, hidden.mean(dim=(2, 3))


def activations(
    unet: nn.Module, x_BCHW: torch.Tensor, timestep: int, classes_B: torch.Tensor | None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the name and the output `(B, C, H, W)` of each of a U-Net's blocks, one after the other.

    The blocks behind the last one that is asked for are not computed.
    """
    net: Any = unet
    embedding = embed_time(net, x_BCHW, timestep, classes_B)

    # Down to the bottleneck
    hidden = net.conv_in(x_BCHW)
    skips = (hidden,)
    for number, block in enumerate(net.down_blocks):
        hidden, more = block(hidden_states=hidden, temb=embedding)
        skips += more
        yield f"down{number}", hidden

    if net.mid_block is not None:
        hidden = net.mid_block(hidden, embedding)
        yield "mid", hidden

    # And up again
    for number, block in enumerate(net.up_blocks):
        own = len(block.resnets)
        hidden = block(hidden, skips[-own:], embedding)
        skips = skips[:-own]
        yield f"up{number}", hidden


def _null_class(model: DiffusionModel) -> int | None:
    if model.condition is None:
        return None
    if model.condition.null is None:
        raise InputError(
            f"{model.origin} has classes and none that is known to stand for «no class»; "
            "features take a model without classes, or one of clsp diffusion train"
        )
    return model.condition.null


def _alpha_bar(model: DiffusionModel, timestep: int) -> float:
    """Return ᾱ of a timestep."""
    alphas = make_scheduler(SamplerConfig(), model.noise_schedule).alphas_cumprod
    if not 0 <= timestep < len(alphas):
        raise InputError(
            f"{model.origin} has the timesteps 0 … {len(alphas) - 1}, expected one of them, found {timestep}"
        )
    return float(alphas[timestep])
