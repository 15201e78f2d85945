"""The U-Net in two halves, and the mixing of bottleneck features between them (CLSP, section 3.2)."""

from typing import Any, NamedTuple

import torch
from diffusers import UNet2DModel

from ..core import InputError

PLAIN_BLOCKS = {"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"}


class Encoded(NamedTuple):
    """Holds bottleneck features, skip connections and time embedding: all that the decoder needs of the encoder.

    >>> from clsp.generate.example import make_example_model
    >>> unet = make_example_model(size=8).unet
    >>> x_BCHW = torch.randn(2, 3, 8, 8)
    >>> encoded = encode(unet, x_BCHW, timestep=500)
    >>> encoded.bottleneck.shape
    torch.Size([2, 32, 4, 4])
    >>> torch.equal(decode(unet, encoded), unet(x_BCHW, 500).sample)
    True
    """

    bottleneck: torch.Tensor
    skips: tuple[torch.Tensor, ...]
    embedding: torch.Tensor


def encode(
    unet: UNet2DModel, x_BCHW: torch.Tensor, timestep: int, classes_B: torch.Tensor | None = None
) -> Encoded:
    """Run the U-Net up to and including its middle block.

    Args:
        classes_B: the images' classes, int64, of a U-Net that has a class embedding; or rows of one, `(B, E)`, of a
            U-Net that takes these (`without_class_embedding`).
    """
    net: Any = unet
    embedding = embed_time(unet, x_BCHW, timestep, classes_B)

    # Down to the bottleneck
    hidden = net.conv_in(x_BCHW)
    skips = (hidden,)
    for block in net.down_blocks:
        hidden, more = block(hidden_states=hidden, temb=embedding)
        skips += more

    if net.mid_block is not None:
        hidden = net.mid_block(hidden, embedding)

    return Encoded(hidden, skips, embedding)


def embed_time(
    unet: UNet2DModel, x_BCHW: torch.Tensor, timestep: int, classes_B: torch.Tensor | None
) -> torch.Tensor:
    """Return the time embedding `(B, E)` of images at a timestep, with that of their classes added."""
    net: Any = unet
    timesteps = torch.full((x_BCHW.shape[0],), timestep, dtype=torch.long, device=x_BCHW.device)
    embedding = net.time_embedding(net.time_proj(timesteps).to(x_BCHW.dtype))

    if classes_B is not None:
        embedding = embedding + net.class_embedding(classes_B).to(x_BCHW.dtype)

    return embedding


def decode(unet: UNet2DModel, encoded: Encoded) -> torch.Tensor:
    """Run the U-Net from behind its middle block; returns the predicted noise `(B, C, H, W)`.

    `decode(unet, encode(unet, x, t))` is the U-Net's own forward, to the last bit.
    """
    net: Any = unet
    hidden, skips, embedding = encoded

    for block in net.up_blocks:
        own = len(block.resnets)  # so many of the skips, the last ones first
        hidden = block(hidden, skips[-own:], embedding)
        skips = skips[:-own]

    return net.conv_out(net.conv_act(net.conv_norm_out(hidden)))


def interpolate(sample: Encoded, anchor_bottleneck: torch.Tensor, weight: float) -> Encoded:
    """Mix the bottlenecks, `h = w·h_sample + (1-w)·h_anchor`; the skip connections stay the sample's."""
    return sample._replace(bottleneck=weight * sample.bottleneck + (1 - weight) * anchor_bottleneck)


def interpolate_on_arc(sample: Encoded, anchor_bottleneck: torch.Tensor, weight: float) -> Encoded:
    """Mix the bottlenecks along the arc between them, at the sample's norm (slerp, as in InjectFusion).

    With the anchor's features scaled to the norm of the sample's, `a = h_anchor·|h_sample|/|h_anchor|`, and the angle θ
    between the two, `h = (sin((1-w)·θ)·a + sin(w·θ)·h_sample) / sin(θ)`. Norm and angle are those of an image's whole
    bottleneck, in float32 whatever the precision.
    """
    sample_BN = sample.bottleneck.flatten(1).float()
    anchor_BN = anchor_bottleneck.flatten(1).float()

    # a, at the sample's norm
    norm_B1 = sample_BN.norm(dim=1, keepdim=True)
    anchor_BN = torch.nn.functional.normalize(anchor_BN, dim=1) * norm_B1

    # θ; towards 0 the arc becomes the chord
    cosine_B1 = torch.nn.functional.cosine_similarity(sample_BN, anchor_BN, dim=1)[:, None]
    angle_B1 = torch.acos(cosine_B1.clamp(-1, 1)).clamp(min=1e-4, max=torch.pi - 1e-4)

    # h
    share_of_anchor_B1 = torch.sin((1 - weight) * angle_B1) / torch.sin(angle_B1)
    share_of_sample_B1 = torch.sin(weight * angle_B1) / torch.sin(angle_B1)
    mixed_BN = share_of_anchor_B1 * anchor_BN + share_of_sample_B1 * sample_BN

    mixed = mixed_BN.view_as(sample.bottleneck).to(sample.bottleneck.dtype)
    return sample._replace(bottleneck=mixed)


def check_unet_config(config: dict[str, Any], name: str) -> None:
    """Refuse a U-Net that `encode` and `decode` do not cover.

    Raises:
        InputError: naming what does not fit.
    """
    blocks = [*config.get("down_block_types", ()), *config.get("up_block_types", ())]
    unfit = {
        "class": config.get("_class_name", "UNet2DModel") != "UNet2DModel",
        "time_embedding_type": config.get("time_embedding_type", "positional") != "positional",
        "blocks": not set(blocks) <= PLAIN_BLOCKS,
        "class_embed_type": bool(config.get("class_embed_type")),
        "center_input_sample": bool(config.get("center_input_sample", False)),
    }

    found = ", ".join(key for key, bad in unfit.items() if bad)
    if found:
        raise InputError(
            f"diffusion model {name}: {found} does not fit; expected a UNet2DModel with positional time embedding "
            "and plain blocks, without classes or with num_class_embeds"
        )
