"""Training an autoencoder on the anchors alone: variational, with next to no KL term (Rombach et al. 2022, appendix G).

Shape legend: B images, C colours, H height, W width.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import nn
from torch.nn import functional as F
from torchvision.utils import save_image

from ..core import canonical_json, replacing, stream_seed, to_device
from ..shards import ImageSource
from .autoencoder_config import AutoencoderConfig
from .model import check_halvings
from .perceptual import PerceptualDistance
from .reconstruction import (
    COLUMNS,
    psnr,
    read_images,
    reconstruct,
    reconstruction_grid,
    scaling_factor,
)
from .train_images import TrainBatch, flip_half, image_batches
from .training_folder import AUTOENCODER, SAMPLES, TrainingFolder, anchor_facts
from .training_loop import Report, Training, train_in_folder

WATCHED = 64
"""Anchors whose reconstructions are measured; every other one of them is in the grids."""
FIGURES: tuple[str, ...] = ("loss", "reconstruction", "kl", "perceptual")
UNESSENTIAL = {
    "workers",
    "checkpoint_steps",
    "sample_steps",
    "perceptual",  # by its digest
}


@dataclass(frozen=True)
class PerceptualModel:
    """Holds the digest of the model in whose features images are compared, and the way to have it.

    >>> flat = nn.Module()
    >>> flat.forward = lambda images: [images]
    >>> model = PerceptualModel("11", lambda: PerceptualDistance(flat, (0, 0, 0), (1, 1, 1)))
    >>> model.digest
    '11'
    """

    digest: str
    """Of its weights."""
    load: Callable[[], PerceptualDistance]


def train_autoencoder(
    anchors: ImageSource,
    config: AutoencoderConfig,
    out: Path,
    report: Report | None = None,
    perceptual: PerceptualModel | None = None,
    recipe: bytes = b"",
) -> Path:
    """Train and save a model that `AutoencoderKL.from_pretrained(out)` loads; resumes from `out` by itself.

    Everything random is a pure function of (seed, step, rank), so a resumed run equals an uninterrupted one.

    Args:
        report: called after every step with (steps done, steps, the latest metrics).
        perceptual: for `config.perceptual`.
        recipe: the content of `recipe.toml`, which is kept beside the model; empty: there is none.

    Raises:
        InputError: the levels do not divide the anchors' side; `out` holds a model trained with other settings or on
            other images, or another process works there.
        WorkError: the weights are not finite any more (names the last good checkpoint), or all latents are alike.
    """
    if bool(config.perceptual) != (perceptual is not None):
        raise ValueError("perceptual: give the model that config.perceptual names, or neither")

    check_halvings(anchors.size, len(config.channels), "autoencoder.channels")
    folder = _folder(anchors, config, out, perceptual)

    def make(accelerator: Accelerator) -> _Training:
        distance = perceptual.load() if perceptual else None
        return _Training(accelerator, anchors, config, folder, distance)

    train_in_folder(folder, config, make, report, recipe, _Training.section)
    return out


def check_autoencoder_out(
    anchors: ImageSource,
    config: AutoencoderConfig,
    out: Path,
    perceptual: PerceptualModel | None = None,
) -> bool:
    """Return True if `out` holds the finished autoencoder of these settings, False if it can start or go on there.

    Raises:
        InputError: it holds something else, or the levels do not divide the anchors' side.
    """
    check_halvings(anchors.size, len(config.channels), "autoencoder.channels")
    return _folder(anchors, config, out, perceptual).is_finished()


def build_autoencoder(config: AutoencoderConfig, size: int) -> AutoencoderKL:
    """Return an autoencoder with random weights for `size` x `size` RGB images, with attention in its middle."""
    levels = len(config.channels)
    return AutoencoderKL(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * levels,  # type: ignore[arg-type]
        up_block_types=("UpDecoderBlock2D",) * levels,  # type: ignore[arg-type]
        block_out_channels=config.channels,  # type: ignore[arg-type]
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    )


class Coder(nn.Module):
    """Encodes images, draws their latents and decodes these, in the one forward pass that several processes need.

    >>> net = build_autoencoder(AutoencoderConfig(channels=(8, 16), norm_groups=8), size=8)
    >>> images_BCHW, kl_B = Coder(net)(torch.zeros(2, 3, 8, 8))
    >>> images_BCHW.shape, kl_B.shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2]))
    """

    def __init__(self, net: AutoencoderKL):
        super().__init__()
        self.net = net

    def forward(self, images_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reconstructions `(B, C, H, W)` and the KL divergences `(B,)` from N(0, I), sums over latents."""
        # q(z | x), in float32 whatever the encoder computes in
        encoded: Any = self.net.encode(images_BCHW)
        posterior = DiagonalGaussianDistribution(encoded.latent_dist.parameters.float())

        # z ~ q, and the image that it stands for
        decoded: Any = self.net.decode(posterior.sample())  # type: ignore[arg-type]
        return decoded.sample, posterior.kl()


class _Training(Training):
    """Holds the weights and the optimizer."""

    section = "autoencoder"

    def __init__(
        self,
        accelerator: Accelerator,
        anchors: ImageSource,
        config: AutoencoderConfig,
        folder: TrainingFolder,
        distance: PerceptualDistance | None,
    ):
        super().__init__(accelerator, config, folder)
        self.anchors = anchors
        self.config = config
        self.distance = distance.to(accelerator.device) if distance else None

        # Network and optimizer
        torch.manual_seed(stream_seed(config.seed, "autoencoder weights"))
        self.net = build_autoencoder(config, anchors.size)
        adam = torch.optim.Adam(self.net.parameters(), lr=config.lr, fused=True)
        self.coder, self.optimizer = accelerator.prepare(Coder(self.net), adam)

    def batches(self, first: int) -> AbstractContextManager[Iterator[TrainBatch]]:
        """Read this rank's images."""
        rank = self.accelerator.process_index
        world_size = self.accelerator.num_processes
        return image_batches(self.anchors, self.config, first, rank, world_size)

    def step(self, batch: TrainBatch, step: int) -> None:
        """Do one step; the flips and the latents come from the seed of (seed, step, rank)."""
        config = self.config
        rank = self.accelerator.process_index
        x_BCHW = to_device(batch.images_BCHW, self.accelerator.device)

        # x, flipped or not, and its reconstruction y
        torch.manual_seed(stream_seed(config.seed, step, rank, "autoencoder"))
        if config.flip:
            x_BCHW = flip_half(x_BCHW)
        y_BCHW, kl_B = self.coder(x_BCHW)

        # The mean of |x - y|, and KL(q(z | x), N(0, I)) per value of the image
        reconstruction = F.l1_loss(y_BCHW.float(), x_BCHW)
        kl = kl_B.mean() / x_BCHW[0].numel()
        loss = reconstruction + config.kl_weight * kl

        # The distance in a model's features
        perceptual = torch.zeros_like(loss)
        if self.distance is not None:
            with self.accelerator.autocast():
                perceptual = self.distance(y_BCHW, x_BCHW)
            loss = loss + config.perceptual_weight * perceptual

        # Gradient step
        self.update(loss, step)
        self.losses.append(torch.stack([loss, reconstruction, kl, perceptual]).detach())

    def mean_losses(self) -> dict[str, float]:
        """Return the means of the loss and its terms, before their weights, since the last row of the log."""
        means = torch.stack(self.losses).mean(dim=0).tolist()
        figures = dict(zip(FIGURES, means, strict=True))
        if self.distance is None:
            del figures["perceptual"]
        return figures

    @cached_property
    def watched(self) -> torch.Tensor:
        """Return the anchors `(B, C, H, W)` whose reconstructions are watched, spread over all, in [-1, 1]."""
        return read_images(self.anchors, self.anchors.spread(WATCHED))

    def draw(self, done: int) -> dict[str, float]:
        """Save a grid of originals above reconstructions after so many steps, and return the mean PSNR."""
        images_BCHW = self.watched
        found_BCHW = reconstruct(self.net, images_BCHW)

        grid = reconstruction_grid(images_BCHW[::2], found_BCHW[::2])
        with replacing(self.out / SAMPLES / f"step-{done:08d}.png") as file:
            save_image(grid, file, format="png", nrow=COLUMNS, normalize=True, value_range=(-1, 1))

        return {"psnr": psnr(images_BCHW, found_BCHW).mean().item()}

    def parts(self) -> dict[str, Any]:
        """Return the weights and the optimizer."""
        return {"autoencoder": self.net, "optimizer": self.optimizer}

    def finish(self) -> None:
        """Save the autoencoder with its scaling factor in diffusers' form; `config.json`, for «finished», last."""
        self.net.register_to_config(scaling_factor=scaling_factor(self.net, self.anchors))
        self.folder.put_result(self.net.save_pretrained)


def _folder(
    anchors: ImageSource,
    config: AutoencoderConfig,
    out: Path,
    perceptual: PerceptualModel | None,
) -> TrainingFolder:
    settings = config.recorded(leave_out=UNESSENTIAL)
    if perceptual:
        settings["perceptual_digest"] = perceptual.digest
    else:
        del settings["perceptual_weight"]

    identity = canonical_json({**anchor_facts(anchors), **settings})
    return TrainingFolder(out, "model of clsp autoencoder train", identity, AUTOENCODER)
