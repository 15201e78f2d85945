"""Training the diffusion model on the anchors: DDPM with ε-prediction (Ho et al. 2020, algorithm 1)."""

import contextlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
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
    RECIPE,
    InputError,
    StopRequested,
    WorkError,
    canonical_json,
    exact_precision,
    holding,
    json_line,
    make_accelerator,
    owner_of,
    replacing,
    saving,
    set_aside,
    stop_deferred,
    stream_seed,
    to_device,
    training_precision,
    write_file,
)
from ..shards import ImageSource
from .autoencoder import Autoencoder
from .clusters import FILE as CLUSTERS
from .clusters import ClusterEncoder, check_cluster_count
from .condition import RECORD, TrainClasses, cluster_classes, label_classes
from .config import DiffusionConfig
from .encoded_anchors import LatentTraining, Progress, encode_anchors
from .latent import MARK
from .latent import RECORD as LATENT
from .model import NOISE_SCHEDULE, build_unet
from .pixels import to_uint8
from .schedulers import PIXEL_BOUNDS
from .train_images import TrainBatch, image_batches
from .unconditional import draw_images

CHECKPOINT, IDENTITY, LOG, SAMPLES = "checkpoint.pt", "training.json", "log.jsonl", "samples"
GRID = 64
LOGGED = 50
SECONDS_BETWEEN_POLLS = 0.2
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
Report = Callable[[int, int, dict[str, float]], None]
Probe = Callable[[Iterator[np.ndarray]], dict[str, float]]


@dataclass(frozen=True)
class TrainingDigests:
    """Holds the digests of the networks that a training uses; empty where it uses none.

    >>> TrainingDigests.of(None, None)
    TrainingDigests(encoder='', autoencoder='')
    """

    encoder: str = ""
    """Of the encoder whose features are clustered."""
    autoencoder: str = ""

    @classmethod
    def of(
        cls, encoder: ClusterEncoder | None, autoencoder: Autoencoder | None
    ) -> "TrainingDigests":
        """Return the digests of the networks that there are."""
        return cls(
            encoder=encoder.digest if encoder else "",
            autoencoder=autoencoder.digest if autoencoder else "",
        )


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
        report: called with (steps done, steps, metrics).
        probe: measures images `(B, H, W, 3)` uint8 that the averaged weights make, every `sample_steps`, for the log.
        clip: clamp the predicted x0 of the images that are drawn meanwhile (`sampler.clip`).
        encoder: whose features are clustered, for `condition = "clusters"`.
        recipe: the content of `recipe.toml`, which is kept beside the model; empty: there is none.
        autoencoder: the U-Net is trained on its latents of the anchors, which are encoded once and kept in `out`.
        encoding: makes what shows how far that is.

    Raises:
        InputError: `out` holds a model trained with other settings or on other images, or another process works there.
        WorkError: the weights are not finite any more; names the last good checkpoint. Or latents are not.
    """
    if config.condition == "clusters" and encoder is None:
        raise ValueError("condition = clusters needs an encoder whose features are clustered")

    digests = TrainingDigests.of(encoder, autoencoder)
    if check_out(anchors, config, out, digests=digests):
        return out

    # Processes; the others wait while the first one draws images
    accelerator = make_accelerator(config.precision)
    if config.batch_size % accelerator.num_processes:
        raise InputError(
            f"diffusion.batch_size is {config.batch_size}, not divisible by the {accelerator.num_processes} processes"
        )

    # The folder, for this process alone
    on_any_rank = partial(_on_any_rank, accelerator)
    with holding(out, accelerator.is_main_process, on_any_rank) as is_locked:
        if not check_out(anchors, config, out, is_locked, digests):  # another may have finished it
            if accelerator.is_main_process:
                _claim(out, _identity(anchors, config, digests), recipe)

            accelerator.wait_for_everyone()
            classes = _train_classes(anchors, config, encoder, out, accelerator.is_main_process)
            latents = None
            if autoencoder:
                latents = _train_latents(accelerator, anchors, config, autoencoder, out, encoding)

            training = _Training(accelerator, anchors, config, out, probe, clip, classes, latents)
            _train(training, report)
    return out


def _train_latents(
    accelerator: Accelerator,
    anchors: ImageSource,
    config: DiffusionConfig,
    autoencoder: Autoencoder,
    out: Path,
    encoding: Progress | None,
) -> LatentTraining:
    """Return the latents to train on, encoded by all processes, and write down in `out` what they are."""
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
        # By the file: a barrier would run into the time limit of a collective
        while not (out / RECORD).exists():
            time.sleep(SECONDS_BETWEEN_POLLS)

    if config.condition == "labels":
        classes = label_classes(anchors)
    else:
        assert encoder is not None
        classes = cluster_classes(anchors, config, encoder, out)

    if is_main_process:
        classes.save(out)
    return classes


def _train(training: "_Training", report: Report | None) -> None:
    """Train in a folder that no other process works in."""
    accelerator = training.accelerator
    anchors = training.anchors
    config = training.config
    out = training.out

    # The step that was reached
    first = training.load()
    if accelerator.is_main_process:
        _cut_log(out, first)

    # Steps
    rank = accelerator.process_index
    world_size = accelerator.num_processes
    classes_N = training.classes.classes_N if training.classes else None
    encoded = training.latents.encoded if training.latents else None
    reading = image_batches(anchors, config, first, rank, world_size, classes_N, encoded)
    with training_precision(), stop_deferred() as stop_requested, reading as batches:
        for step, batch in enumerate(batches, start=first):
            training.step(batch, step)
            metrics = training.look(step + 1)
            if metrics and report:
                report(step + 1, config.steps, metrics)
            if training.stops(step + 1, stop_requested()):
                raise StopRequested

    # The result
    if accelerator.is_main_process:
        training.finish()

    accelerator.wait_for_everyone()
    accelerator.end_training()


def _on_any_rank(accelerator: Accelerator, here: bool) -> bool:
    """Return True on every rank if it is True on any."""
    if accelerator.num_processes == 1:
        return here
    total: Any = accelerator.reduce(torch.tensor(float(here), device=accelerator.device))
    return bool(total)


class _Training:
    """Holds the weights, their average and the optimizer; `look` is called between steps."""

    def __init__(
        self,
        accelerator: Accelerator,
        anchors: ImageSource,
        config: DiffusionConfig,
        out: Path,
        probe: Probe | None,
        clip: bool,
        classes: TrainClasses | None,
        latents: LatentTraining | None = None,
    ):
        self.accelerator = accelerator
        self.anchors = anchors
        self.config = config
        self.out = out
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
        adam = torch.optim.Adam(self.net.parameters(), lr=config.lr, fused=True)
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
        self.losses: list[torch.Tensor] = []

    def step(self, batch: TrainBatch, step: int) -> None:
        """Do one step of equation 14 of the DDPM paper; all noise comes from the seed of (seed, step, rank)."""
        config = self.config
        rank = self.accelerator.process_index
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(step)

        # x_0, flipped or not
        torch.manual_seed(stream_seed(config.seed, step, rank, "diffusion"))
        x0 = self._flipped(batch) if config.flip else self._plain(batch)

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
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.unet.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.net.parameters())
        self.losses.append(loss.detach())

    def _plain(self, batch: TrainBatch) -> torch.Tensor:
        return to_device(batch.images_BCHW, self.accelerator.device)

    def _flipped(self, batch: TrainBatch) -> torch.Tensor:
        """Return the images or latents of a batch, half of them of the mirror images."""
        x0 = self._plain(batch)
        mirrored = x0.flip(-1)
        if batch.mirrored_BCHW is not None:
            mirrored = to_device(batch.mirrored_BCHW, x0.device)

        is_mirrored = torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5
        return torch.where(is_mirrored, mirrored, x0)

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

    def look(self, done: int) -> dict[str, float]:
        """Return the metrics that are due after so many steps; draws, logs and saves what is due too."""
        config = self.config
        is_logged = done % LOGGED == 0 or done == config.steps
        is_saved = done % config.checkpoint_steps == 0 and done < config.steps
        if is_logged or is_saved:
            self.check_finite(done)

        metrics = {}
        if is_logged:
            metrics["loss"] = torch.stack(self.losses).mean().item()
            self.losses.clear()

        if self.accelerator.is_main_process:
            if config.sample_steps and done % config.sample_steps == 0:
                metrics |= self._draw(done)
            if metrics:
                _log(self.out, done, metrics)
            if is_saved:
                self._save(done)

        return metrics

    def check_finite(self, done: int) -> None:
        """Stop before weights that are not finite reach a file; a loss that is not has made such weights.

        Raises:
            WorkError: they are not; names the last good checkpoint.
        """
        norms = torch.stack(torch._foreach_norm(list(self.net.parameters())))
        if torch.isfinite(norms.sum()):
            return

        good = self.out / CHECKPOINT
        is_saved = good.exists()
        raise WorkError(
            f"the model is not finite any more after step {done}; "
            f"the last good checkpoint is {good if is_saved else 'none'}; "
            "lower diffusion.lr, or train in float32 (diffusion.precision=no), "
            f"into {'another' if is_saved else 'the same'} --out"
        )

    def stops(self, done: int, requested: bool) -> bool:
        """Save a checkpoint if a stop was requested on any rank: all of them stop behind the same step."""
        requested = _on_any_rank(self.accelerator, requested)
        if requested:
            self.check_finite(done)
        if requested and self.accelerator.is_main_process:
            self._save(done)
        return requested

    def _draw(self, done: int) -> dict[str, float]:
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
        grid = torch.cat(list(_first_rows(self._pixels(batches), GRID)))
        with replacing(self.out / SAMPLES / f"step-{done:08d}.png") as file:
            save_image(grid, file, format="png", normalize=True, value_range=(-1, 1))

        return self.probe(to_uint8(batch) for batch in self._pixels(batches)) if self.probe else {}

    def _pixels(self, batches: list[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Yield the images of what was drawn; latents are decoded a few at a time, when they are asked for."""
        if self.latents is None:
            yield from batches
            return

        autoencoder = self.latents.autoencoder
        for batch in batches:
            with torch.inference_mode(), exact_precision():
                latents_BChw = to_device(batch, self.accelerator.device)
                for images_BCHW in autoencoder.decode(latents_BChw):
                    yield images_BCHW.cpu()

    def _save(self, step: int) -> None:
        parts = {"unet": self.net, "ema": self.ema, "optimizer": self.optimizer}
        with replacing(self.out / CHECKPOINT) as file:
            torch.save(
                {
                    "step": step,
                    "losses": self.losses,
                    **{name: part.state_dict() for name, part in parts.items()},
                },
                file,
            )

    def load(self) -> int:
        """Go on from the checkpoint, if there is one; returns the steps that it has done."""
        if not (self.out / CHECKPOINT).exists():
            return 0

        state = torch.load(self.out / CHECKPOINT, map_location="cpu", weights_only=True)
        self.net.load_state_dict(state["unet"])
        self.ema.load_state_dict(state["ema"])
        self.ema.to(self.accelerator.device)  # its own loading drops the device
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses = [loss.to(self.accelerator.device) for loss in state["losses"]]
        return state["step"]

    def finish(self) -> None:
        """Save the averaged weights in diffusers' format; `model_index.json`, whose presence means «finished», last."""
        self.ema.copy_to(self.net.parameters())
        out = self.out

        # Write everything beside, then move it into its place
        staging = out / ".pipeline.tmp"
        shutil.rmtree(staging, ignore_errors=True)

        with saving(staging), contextlib.redirect_stdout(None):
            pipeline = DDPMPipeline(self.net, self.noise)
            if self.latents:
                pipeline.register_to_config(**{MARK: LATENT})
            pipeline.save_pretrained(staging)

        for part in ("unet", "scheduler"):
            shutil.rmtree(out / part, ignore_errors=True)
            (staging / part).rename(out / part)

        (staging / "model_index.json").rename(out / "model_index.json")
        shutil.rmtree(staging)
        (out / CHECKPOINT).unlink(missing_ok=True)


def _first_rows(batches: Iterator[torch.Tensor], count: int) -> Iterator[torch.Tensor]:
    """Yield the first so many rows of batches, without asking for batches behind them."""
    left = count
    while left > 0:
        batch = next(batches, None)
        if batch is None:
            return
        yield batch[:left]
        left -= len(batch)


def check_out(
    anchors: ImageSource,
    config: DiffusionConfig,
    out: Path,
    may_replace: bool = True,
    digests: "TrainingDigests" = TrainingDigests(),
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

    found = owner_of(out, IDENTITY, "model of clsp diffusion train")
    is_another = found is not None and found != _identity(anchors, config, digests)
    if is_another and not (may_replace and _is_without_result(out)):
        raise InputError(
            f"{out} holds a model trained with other settings ({out / IDENTITY}); choose another --out"
        )

    return (out / "model_index.json").exists()


def _is_without_result(out: Path) -> bool:
    return not any((out / name).exists() for name in (CHECKPOINT, "model_index.json"))


def _claim(out: Path, identity: bytes, recipe: bytes) -> None:
    """Write down whose the folder is; what other settings have left there was found to be without a result."""
    path = out / IDENTITY
    if path.exists() and path.read_bytes() != identity:
        set_aside(out, (RECIPE, LOG, SAMPLES, RECORD, CLUSTERS, LATENT), IDENTITY)

    write_file(path, identity)
    if recipe:
        write_file(out / RECIPE, recipe)


def begun_precision(out: Path) -> str | None:
    """Return the precision of the training that was begun in `out`, None if there is none."""
    path = out / IDENTITY
    return json.loads(path.read_text(encoding="utf-8")).get("precision") if path.exists() else None


def _identity(anchors: ImageSource, config: DiffusionConfig, digests: TrainingDigests) -> bytes:
    settings = config.recorded(leave_out=UNESSENTIAL)
    if config.condition == "clusters":
        settings["cluster_encoder_digest"] = digests.encoder
    if digests.autoencoder:
        settings["autoencoder_digest"] = digests.autoencoder
    if len(anchors) < anchors.source_count:
        settings["anchors_used"] = len(anchors)
    images = {"anchors": anchors.digest, "size": anchors.size, **anchors.pixel_record}
    return canonical_json({**images, **settings})


def _log(out: Path, step: int, metrics: dict[str, float]) -> None:
    with (out / LOG).open("a", encoding="utf-8") as file:
        file.write(json_line({"step": step, **metrics}))


def _cut_log(out: Path, step: int) -> None:
    """Keep the rows up to `step`: a resumed run writes the later ones again."""
    if (out / LOG).exists():
        lines = (out / LOG).read_text(encoding="utf-8").splitlines()
        write_file(
            out / LOG, "".join(f"{line}\n" for line in lines if _step_of(line) <= step).encode()
        )


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short when the process was killed
        return math.inf
