"""Training the unconditional diffusion model on the anchors: DDPM with ε-prediction (Ho et al. 2020, algorithm 1)."""

import contextlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
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
    InputError,
    StopRequested,
    canonical_json,
    make_accelerator,
    owner_of,
    replacing,
    stop_deferred,
    stream_seed,
    write_file,
)
from ..shards import ImageSource
from .config import DiffusionConfig
from .model import NOISE_SCHEDULE, build_unet
from .pixels import to_uint8
from .train_images import image_batches
from .unconditional import draw_images

CHECKPOINT, IDENTITY, LOG, SAMPLES = "checkpoint.pt", "training.json", "log.jsonl", "samples"
GRID = 64
LOGGED = 50
UNESSENTIAL = {
    "path",
    "workers",
    "checkpoint_steps",
    "sample_steps",
    "probe_images",
    "probe_encoder",
}
Report = Callable[[int, int, dict[str, float]], None]
Probe = Callable[[Iterator[np.ndarray]], dict[str, float]]


def train_diffusion(
    anchors: ImageSource,
    config: DiffusionConfig,
    out: Path,
    report: Report | None = None,
    probe: Probe | None = None,
    clip: bool = True,
) -> Path:
    """Train and save a model that `DDPMPipeline.from_pretrained(out)` loads; resumes from `out` by itself.

    Everything random is a pure function of (seed, step, rank), so a resumed run equals an uninterrupted one.

    Args:
        report: called with (steps done, steps, metrics).
        probe: measures images `(B, H, W, 3)` uint8 that the averaged weights make, every `sample_steps`, for the log.
        clip: clamp the predicted x0 of the images that are drawn meanwhile (`sampler.clip`).

    Raises:
        InputError: `out` holds a model trained with other settings or on other images.
    """
    if check_out(anchors, config, out):
        return out

    accelerator = make_accelerator(config.precision)
    if config.batch_size % accelerator.num_processes:
        raise InputError(
            f"diffusion.batch_size is {config.batch_size}, not divisible by the {accelerator.num_processes} processes"
        )

    training = _Training(accelerator, anchors, config, out, probe, clip)
    if accelerator.is_main_process:
        write_file(out / IDENTITY, _identity(anchors, config))

    first = training.load()
    if accelerator.is_main_process:
        _cut_log(out, first)

    reading = image_batches(
        anchors, config, first, accelerator.process_index, accelerator.num_processes
    )

    with stop_deferred() as stop_requested, reading as batches:
        for step, x0 in enumerate(batches, start=first):
            training.step(x0.to(accelerator.device), step)
            metrics = training.look(step + 1)
            if metrics and report:
                report(step + 1, config.steps, metrics)
            if training.stops(step + 1, stop_requested()):
                raise StopRequested

    if accelerator.is_main_process:
        training.finish()

    accelerator.wait_for_everyone()
    accelerator.end_training()

    return out


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
    ):
        self.accelerator = accelerator
        self.config = config
        self.out = out
        self.probe = probe
        self.clip = clip
        torch.manual_seed(stream_seed(config.seed, "diffusion weights"))
        self.net = build_unet(config, anchors.size)
        adam = torch.optim.Adam(self.net.parameters(), lr=config.lr, fused=True)
        self.unet, self.optimizer = accelerator.prepare(self.net, adam)
        averaging: Any = {
            "decay": config.ema_decay,
            "use_ema_warmup": config.ema_warmup,
            "foreach": True,
        }
        self.ema = EMAModel(self.net.parameters(), **averaging)
        self.ema.to(accelerator.device)
        self.noise: Any = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
        self.losses: list[torch.Tensor] = []

    def step(self, x0: torch.Tensor, step: int) -> None:
        """Do one step of equation 14 of the DDPM paper; all noise comes from the seed of (seed, step, rank)."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.learning_rate(step)

        torch.manual_seed(
            stream_seed(config.seed, step, self.accelerator.process_index, "diffusion")
        )

        if config.flip:
            x0 = torch.where(torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5, x0.flip(-1), x0)

        noise = torch.randn_like(x0)
        timesteps = torch.randint(
            self.noise.config.num_train_timesteps, (len(x0),), device=x0.device
        )
        predicted = self.unet(
            self.noise.add_noise(x0, noise, timesteps), timesteps, return_dict=False
        )[0]
        loss = self._loss(predicted.float(), noise, timesteps)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.unet.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
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

    def look(self, done: int) -> dict[str, float]:
        """Return the metrics that are due after so many steps; draws, logs and saves what is due too."""
        config = self.config
        metrics = {}
        if done % LOGGED == 0 or done == config.steps:
            metrics["loss"] = torch.stack(self.losses).mean().item()
            self.losses.clear()

        if self.accelerator.is_main_process:
            if config.sample_steps and done % config.sample_steps == 0:
                metrics |= self._draw(done)
            if metrics:
                _log(self.out, done, metrics)
            if done % config.checkpoint_steps == 0 and done < config.steps:
                self._save(done)

        return metrics

    def stops(self, done: int, requested: bool) -> bool:
        """Save a checkpoint if a stop was requested on any rank: all of them stop behind the same step."""
        if self.accelerator.num_processes > 1:
            everyone: Any = self.accelerator.reduce(
                torch.tensor(float(requested), device=self.accelerator.device)
            )
            requested = bool(everyone)
        if requested and self.accelerator.is_main_process:
            self._save(done)
        return requested

    def _draw(self, done: int) -> dict[str, float]:
        """Draw images from the averaged weights, save a grid and measure them; the training is not disturbed."""
        count = max(GRID, self.config.probe_images if self.probe else 0)
        schedule = {key: self.noise.config[key] for key in NOISE_SCHEDULE}
        self.ema.store(self.net.parameters())
        self.ema.copy_to(self.net.parameters())
        self.net.eval()

        try:
            drawn = draw_images(
                self.net, schedule, self.net.config["sample_size"], count, clip=self.clip
            )
            batches = [batch.cpu() for batch in drawn]
        finally:
            self.net.train()
            self.ema.restore(self.net.parameters())

        with replacing(self.out / SAMPLES / f"step-{done:08d}.png") as file:
            save_image(
                torch.cat(batches)[:GRID], file, format="png", normalize=True, value_range=(-1, 1)
            )

        return self.probe(to_uint8(batch) for batch in batches) if self.probe else {}

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
        staging = self.out / ".pipeline.tmp"
        out = self.out
        shutil.rmtree(staging, ignore_errors=True)

        with contextlib.redirect_stdout(None):
            DDPMPipeline(self.net, self.noise).save_pretrained(staging)

        for part in ("unet", "scheduler"):
            shutil.rmtree(out / part, ignore_errors=True)
            (staging / part).rename(out / part)

        (staging / "model_index.json").rename(out / "model_index.json")
        shutil.rmtree(staging)
        (out / CHECKPOINT).unlink(missing_ok=True)


def check_out(anchors: ImageSource, config: DiffusionConfig, out: Path) -> bool:
    """Return True if `out` holds the finished model of these settings and images, False if it can start or go on there.

    Raises:
        InputError: it holds something else.
    """
    found = owner_of(out, IDENTITY, "model of clsp diffusion train")
    if found is not None and found != _identity(anchors, config):
        raise InputError(
            f"{out} holds a model trained with other settings ({out / IDENTITY}); choose another --out"
        )

    return (out / "model_index.json").exists()


def begun_precision(out: Path) -> str | None:
    """Return the precision of the training that was begun in `out`, None if there is none."""
    path = out / IDENTITY
    return json.loads(path.read_text()).get("precision") if path.exists() else None


def _identity(anchors: ImageSource, config: DiffusionConfig) -> bytes:
    settings = config.recorded(leave_out=UNESSENTIAL)
    if len(anchors) < anchors.source_count:
        settings["anchors_used"] = len(anchors)
    return canonical_json({"anchors": anchors.digest, "size": anchors.size, **settings})


def _log(out: Path, step: int, metrics: dict[str, float]) -> None:
    with (out / LOG).open("a") as file:
        file.write(json.dumps({"step": step, **metrics}) + "\n")


def _cut_log(out: Path, step: int) -> None:
    """Keep the rows up to `step`: a resumed run writes the later ones again."""
    if (out / LOG).exists():
        lines = (out / LOG).read_text().splitlines()
        write_file(
            out / LOG, "".join(f"{line}\n" for line in lines if _step_of(line) <= step).encode()
        )


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut short when the process was killed
        return math.inf
