"""Training the diffusion model on the anchors: DDPM with ε-prediction (Ho et al. 2020, algorithm 1)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler
from diffusers.training_utils import EMAModel, compute_snr
from torch.nn import functional as F
from torchvision.utils import save_image

from ..core import (
    canonical_json,
    replacing,
    stream_seed,
    to_device,
    wait_for,
    write_file,
)
from ..shards import ImageSource
from .autoencoder import Autoencoder
from .clusters import FILE as CLUSTERS
from .clusters import ClusterEncoder, check_cluster_count
from .condition import (
    RECORD,
    TrainClasses,
    cluster_classes,
    feature_classes,
    label_classes,
)
from .config import DiffusionConfig
from .latent import MARK
from .latent import RECORD as LATENT
from .latent_encoding import LatentTraining, Progress, encode_anchors
from .model import NOISE_SCHEDULE, build_unet
from .pixels import to_uint8
from .schedulers import PIXEL_BOUNDS
from .told_features import tell_features
from .train_images import TrainBatch, flip_half, image_batches
from .training_folder import (
    NO_DIGESTS,
    PIPELINE,
    SAMPLES,
    TrainingDigests,
    TrainingFolder,
    anchor_facts,
)
from .training_loop import Report, Training, train_in_folder
from .unconditional import decoded_images, draw_images, first_images

GRID = 64
UNESSENTIAL = {
    "path",
    "workers",
    "checkpoint_steps",
    "sample_steps",
    "probe_images",
    "probe_encoder",
    "cluster_encoder",  # by its digest
    "latent",  # by its digest
}
Probe = Callable[[Iterator[np.ndarray]], dict[str, float]]


def train_diffusion(
    anchors: ImageSource,
    config: DiffusionConfig,
    out: Path,
    report: Report | None = None,
    probe: Probe | None = None,
    clip: bool = True,
    encoder: ClusterEncoder | None = None,
    recipe: bytes = b"",
    autoencoder: Autoencoder | None = None,
    encoding: Progress | None = None,
) -> Path:
    """Train and save a model that `DDPMPipeline.from_pretrained(out)` loads; resumes from `out` by itself.

    Everything random is a pure function of (seed, step, rank), so a resumed run equals an uninterrupted one.

    Args:
        report: called after every step with (steps done, steps, the latest metrics).
        probe: measures images `(B, H, W, 3)` uint8 that the averaged weights make, every `sample_steps`, for the log.
        clip: clamp the predicted x0 of the images that are drawn meanwhile (`sampler.clip`).
        encoder: whose features are clustered or told, for `condition = "clusters"` and `"features"`.
        recipe: the content of `recipe.toml`, which is kept beside the model; empty: there is none.
        autoencoder: the U-Net is trained on its latents of the anchors, which are encoded once and kept in `out`.
        encoding: makes what shows how far that is.

    Raises:
        InputError: `out` holds a model trained with other settings or on other images, or another process works there.
        WorkError: the weights are not finite any more; names the last good checkpoint. Or latents are not finite.
    """
    if config.has_encoder and encoder is None:
        raise ValueError(f"condition = {config.condition} needs an encoder")
    if config.latent and autoencoder is None:
        raise ValueError("latent names an autoencoder, which has to be loaded")

    # The folder
    digests = TrainingDigests.of(encoder, autoencoder)
    if check_out(anchors, config, out, digests=digests):
        return out
    folder = _folder(anchors, config, out, digests)

    # What is trained in it
    def make(accelerator: Accelerator) -> _Training:
        classes = _train_classes(anchors, config, encoder, out, accelerator.is_main_process)
        latents = None
        if autoencoder:
            latents = _train_latents(accelerator, anchors, config, autoencoder, out, encoding)
        return _Training(accelerator, anchors, config, folder, probe, clip, classes, latents)

    train_in_folder(folder, config, make, report, recipe, _Training.section)
    return out


def _train_classes(
    anchors: ImageSource,
    config: DiffusionConfig,
    encoder: ClusterEncoder | None,
    out: Path,
    is_main_process: bool,
) -> TrainClasses | None:
    """Return the classes to train with; the first process makes them, and the others wait for its file."""
    if config.condition == "none":
        return None

    if not is_main_process:
        # By the file, so that no collective is pending meanwhile
        wait_for((out / RECORD).exists, "classes of the anchors")

    if config.condition == "labels":
        classes = label_classes(anchors)
    elif config.condition == "clusters":
        assert encoder is not None
        classes = cluster_classes(anchors, config, encoder, out)
    else:
        assert encoder is not None
        classes = feature_classes(anchors, config, encoder, out, is_main_process)

    if is_main_process:
        classes.save(out)
    return classes


def _train_latents(
    accelerator: Accelerator,
    anchors: ImageSource,
    config: DiffusionConfig,
    autoencoder: Autoencoder,
    out: Path,
    encoding: Progress | None,
) -> LatentTraining:
    """Return the latents to train on, encoded by all processes; the first one writes down in `out` what they are."""
    latents = encode_anchors(
        anchors,
        autoencoder.to(accelerator.device),
        out,
        config.flip,
        accelerator.process_index,
        accelerator.num_processes,
        config.workers,
        encoding,
    )
    if accelerator.is_main_process:
        write_file(out / LATENT, canonical_json(latents.record.model_dump()))
    return latents


class _Training(Training):
    """Holds the weights, their average and the optimizer."""

    section = "diffusion"

    def __init__(
        self,
        accelerator: Accelerator,
        anchors: ImageSource,
        config: DiffusionConfig,
        folder: TrainingFolder,
        probe: Probe | None,
        clip: bool,
        classes: TrainClasses | None,
        latents: LatentTraining | None = None,
    ):
        super().__init__(accelerator, config, folder)
        self.anchors = anchors
        self.config = config
        self.probe = probe
        self.clip = clip
        self.classes = classes
        self.class_count = classes.record.classes if classes else 0
        self.latents = latents

        # What the U-Net works on
        self.side = anchors.size
        self.channels = 3
        if latents:
            self.side = latents.autoencoder.config.latent_size(anchors.size)
            self.channels = latents.record.channels

        # Network and optimizer
        torch.manual_seed(stream_seed(config.seed, "diffusion weights"))
        self.net = build_unet(config, self.side, self.class_count, self.channels)
        if classes and classes.record.kind == "features":
            tell_features(self.net, classes.unit_NF, config.seed)
        adam = torch.optim.Adam(self.net.parameters(), lr=config.lr, fused=True)

        # Here all processes get the weights of the first, and with them the features. A training that was interrupted
        # before its first checkpoint makes the others wait here while the first extracts them again
        self.unet, self.optimizer = accelerator.prepare(self.net, adam)

        # Average of the weights
        averaging: Any = {
            "decay": config.ema_decay,
            "use_ema_warmup": config.ema_warmup,
            "foreach": True,
        }
        self.ema = EMAModel(self.net.parameters(), **averaging)
        self.ema.to(accelerator.device)

        # Noise schedule, DDPM's
        self.noise: Any = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)

    def batches(self, first: int) -> AbstractContextManager[Iterator[TrainBatch]]:
        """Read this rank's images or latents, with their classes where there are any."""
        rank = self.accelerator.process_index
        world_size = self.accelerator.num_processes
        classes_N = self.classes.classes_N if self.classes else None
        encoded = self.latents.encoded if self.latents else None
        return image_batches(self.anchors, self.config, first, rank, world_size, classes_N, encoded)

    def step(self, batch: TrainBatch, step: int) -> None:
        """Do one step of equation 14 of the DDPM paper; all noise comes from the seed of (seed, step, rank)."""
        config = self.config
        rank = self.accelerator.process_index
        x0 = to_device(batch.images_BCHW, self.accelerator.device)

        # x_0, flipped or not
        torch.manual_seed(stream_seed(config.seed, step, rank, "diffusion"))
        if config.flip:
            mirrored = batch.mirrored_BCHW
            x0 = flip_half(x0, None if mirrored is None else to_device(mirrored, x0.device))

        # ε ~ N(0, I), t uniform, x_t = sqrt(ᾱ_t)·x_0 + sqrt(1-ᾱ_t)·ε
        noise = torch.randn_like(x0)
        count = self.noise.config.num_train_timesteps
        timesteps = torch.randint(count, (len(x0),), device=x0.device)
        noised = self.noise.add_noise(x0, noise, timesteps)

        # c, or «no class» for some
        classes_B = None
        if self.classes is not None and batch.classes_B is not None:
            is_shown = torch.rand(len(x0), device=x0.device) >= config.condition_dropout
            classes_B = torch.where(
                is_shown, to_device(batch.classes_B, x0.device), self.classes.record.null
            )

        # ||ε - ε_θ(x_t, t, c)||²
        predicted = self.unet(noised, timesteps, class_labels=classes_B, return_dict=False)[0]
        loss = self._loss(predicted.float(), noise, timesteps)

        # Gradient step, and the average's
        self.update(loss, step)
        self.ema.step(self.net.parameters())
        self.losses.append(loss.detach())

    def _loss(
        self, predicted: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
    ) -> torch.Tensor:
        """Return the mean squared error of ε, each image's weighed by min-SNR-γ where the recipe says so."""
        gamma = self.config.snr_gamma
        if not gamma:
            return F.mse_loss(predicted, noise)

        snr_B = compute_snr(self.noise, timesteps)
        errors_B = (predicted - noise).square().mean(dim=(1, 2, 3))
        return (errors_B * snr_B.clamp(max=gamma) / snr_B).mean()

    def draw(self, done: int) -> dict[str, float]:
        """Draw images from the averaged weights, save a grid and measure them; the training is not disturbed."""
        count = max(GRID, self.config.probe_images if self.probe else 0)
        schedule = {key: self.noise.config[key] for key in NOISE_SCHEDULE}

        # Put the average in the place of the weights
        self.ema.store(self.net.parameters())
        self.ema.copy_to(self.net.parameters())
        self.net.eval()

        # Draw
        device = self.accelerator.device
        bounds = self.latents.space.bounds(device) if self.latents else PIXEL_BOUNDS
        try:
            drawn = draw_images(
                self.net,
                schedule,
                self.side,
                count,
                clip=self.clip,
                classes=self.class_count,
                channels=self.channels,
                bounds=bounds,
            )
            batches = [batch.cpu() for batch in drawn]
        finally:
            self.net.train()
            self.ema.restore(self.net.parameters())

        # Save and measure
        grid = first_images(self._images(batches), GRID)
        with replacing(self.out / SAMPLES / f"step-{done:08d}.png") as file:
            save_image(grid, file, format="png", normalize=True, value_range=(-1, 1))

        return self.probe(to_uint8(batch) for batch in self._images(batches)) if self.probe else {}

    def _images(self, batches: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the images of what was drawn, latents decoded."""
        if self.latents is None:
            return iter(batches)
        return decoded_images(batches, self.latents.autoencoder, self.accelerator.device)

    def parts(self) -> dict[str, Any]:
        """Return the weights, their average and the optimizer."""
        return {"unet": self.net, "ema": self.ema, "optimizer": self.optimizer}

    def load(self) -> int:
        """Go on from the checkpoint, if there is one; returns the steps that it has done."""
        step = super().load()
        self.ema.to(self.accelerator.device)  # its own loading drops the device
        return step

    def finish(self) -> None:
        """Save the averaged weights in diffusers' format; `model_index.json`, whose presence means «finished», last."""
        self.ema.copy_to(self.net.parameters())
        pipeline = DDPMPipeline(self.net, self.noise)
        if self.latents:
            pipeline.register_to_config(**{MARK: LATENT})
        self.folder.put_result(pipeline.save_pretrained)


def check_out(
    anchors: ImageSource,
    config: DiffusionConfig,
    out: Path,
    may_replace: bool = True,
    digests: TrainingDigests = NO_DIGESTS,
) -> bool:
    """Return True if `out` holds the finished model of these settings and images, False if it can start or go on there.

    Args:
        may_replace: a training with other settings that came to no checkpoint, not finite or killed before, makes way.
        digests: of the networks that the training uses.

    Raises:
        InputError: it holds something else, or the settings ask for more clusters than there are anchors.
    """
    if config.condition == "clusters":
        check_cluster_count(anchors, config.clusters)

    return _folder(anchors, config, out, digests).is_finished(may_replace)


def _folder(
    anchors: ImageSource, config: DiffusionConfig, out: Path, digests: TrainingDigests
) -> TrainingFolder:
    kind = "model of clsp diffusion train"
    identity = _identity(anchors, config, digests)
    return TrainingFolder(out, kind, identity, PIPELINE, (RECORD, CLUSTERS, LATENT))


def _identity(anchors: ImageSource, config: DiffusionConfig, digests: TrainingDigests) -> bytes:
    settings = config.recorded(leave_out=UNESSENTIAL)
    if config.has_encoder:
        settings["cluster_encoder_digest"] = digests.encoder
    if digests.autoencoder:
        settings["autoencoder_digest"] = digests.autoencoder
    return canonical_json({**anchor_facts(anchors), **settings})
