"""Training the unconditional diffusion model on the anchors: DDPM with ε-prediction (Ho et al. 2020, algorithm 1)."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..shards import Anchors, InputError, canonical_json, owner_of, permutation, replacing, stream_seed, write_file
from .config import DiffusionConfig
from .sampler import to_model_range

CHECKPOINT, IDENTITY = "checkpoint.pt", "training.json"
Report = Callable[[int, int, dict[str, float]], None]


def build_unet(config: DiffusionConfig, size: int) -> UNet2DModel:
    """A U-Net of the DDPM design for `size` x `size` RGB images.

    Raises:
        InputError: the side cannot be halved as often as the levels want.
    """
    halvings = len(config.channels) - 1
    if size % 2**halvings:
        raise InputError(
            f"anchors of {size} pixels cannot be halved {halvings} times as diffusion.channels wants; "
            "use fewer levels or another anchors.size"
        )
    return UNet2DModel(
        sample_size=size,
        in_channels=3,
        out_channels=3,
        layers_per_block=config.blocks,
        block_out_channels=config.channels,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in config.attention),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)),
        dropout=config.dropout,
        attention_head_dim=None,  # one head, as in DDPM
    )


class _Images(Dataset[torch.Tensor]):
    def __init__(self, anchors: Anchors):
        self.anchors = anchors

    def __len__(self) -> int:
        return len(self.anchors)

    def __getitem__(self, index: int) -> torch.Tensor:
        return to_model_range(self.anchors[index].image[None])[0]


class ImageOrder:
    """This rank's images of the steps `first` … `last - 1`: passes over shuffled images, joined end to end.

    A batch sampler that makes one batch at a time and keeps one pass in memory.
    """

    def __init__(self, count: int, config: DiffusionConfig, first: int, last: int, rank: int = 0, world_size: int = 1):
        self.count, self.seed, self.batch_size = count, config.seed, config.batch_size
        self.first, self.last, self.rank, self.world_size = first, last, rank, world_size

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        order, order_epoch = np.empty(0, np.int64), -1
        local = self.batch_size // self.world_size
        for step in range(self.first, self.last):
            batch = []
            start = step * self.batch_size + self.rank * local
            for sample in range(start, start + local):
                epoch, place = divmod(sample, self.count)
                if epoch != order_epoch:
                    order, order_epoch = permutation(self.count, self.seed, epoch, "diffusion"), epoch
                batch.append(int(order[place]))
            yield batch


def train_diffusion(anchors: Anchors, config: DiffusionConfig, out: Path, report: Report | None = None) -> Path:
    """Train and save a model that `DDPMPipeline.from_pretrained(out)` loads; resumes from `out` by itself.

    Everything random is a pure function of (seed, step, rank), so a resumed run equals an uninterrupted one.

    Raises:
        InputError: `out` holds a model trained with other settings or on other images.
    """
    if check_out(anchors, config, out):
        return out
    accelerator = Accelerator()
    if config.batch_size % accelerator.num_processes:
        raise InputError(
            f"diffusion.batch_size is {config.batch_size}, not divisible by the {accelerator.num_processes} processes"
        )
    torch.manual_seed(stream_seed(config.seed, "diffusion weights"))
    net = build_unet(config, anchors.size)
    if accelerator.is_main_process:
        write_file(out / IDENTITY, _identity(anchors, config))
    unet, optimizer = accelerator.prepare(net, torch.optim.Adam(net.parameters(), lr=config.lr))
    ema = EMAModel(net.parameters(), decay=config.ema_decay)
    ema.to(accelerator.device)
    first = _load_checkpoint(out, net, ema, optimizer)
    scheduler = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    losses: list[torch.Tensor] = []
    for step, x0 in enumerate(_batches(anchors, config, first, accelerator), start=first):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / max(1, config.warmup_steps))
        losses.append(_train_step(accelerator, unet, optimizer, scheduler, x0, config, step))
        ema.step(net.parameters())
        done = step + 1
        if report and (done % 50 == 0 or done == config.steps):
            report(done, config.steps, {"loss": torch.stack(losses).mean().item()})
            losses.clear()
        if done % config.checkpoint_steps == 0 and done < config.steps and accelerator.is_main_process:
            _save_checkpoint(out, net, ema, optimizer, done)
    if accelerator.is_main_process:
        ema.copy_to(net.parameters())
        _save_pipeline(net, scheduler, out)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out


def _batches(anchors: Anchors, config: DiffusionConfig, first: int, accelerator: Accelerator):
    rank, world_size = accelerator.process_index, accelerator.num_processes
    order = ImageOrder(len(anchors), config, first, config.steps, rank, world_size)
    loader = DataLoader(_Images(anchors), batch_sampler=order, num_workers=config.workers)
    return (batch.to(accelerator.device) for batch in loader)


def _train_step(accelerator: Accelerator, unet, optimizer, scheduler, x0, config: DiffusionConfig, step: int):
    """One step of equation 14 of the DDPM paper; all noise comes from the seed of (seed, step, rank)."""
    torch.manual_seed(stream_seed(config.seed, step, accelerator.process_index, "diffusion"))
    if config.flip:
        x0 = torch.where(torch.rand(len(x0), 1, 1, 1, device=x0.device) < 0.5, x0.flip(-1), x0)
    noise = torch.randn_like(x0)
    timesteps = torch.randint(scheduler.config.num_train_timesteps, (len(x0),), device=x0.device)
    predicted = unet(scheduler.add_noise(x0, noise, timesteps), timesteps, return_dict=False)[0]
    loss = F.mse_loss(predicted, noise)
    accelerator.backward(loss)
    accelerator.clip_grad_norm_(unet.parameters(), config.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def check_out(anchors: Anchors, config: DiffusionConfig, out: Path) -> bool:
    """True if `out` holds the finished model of these settings and images, False if it can start or go on there.

    Raises:
        InputError: it holds something else.
    """
    found = owner_of(out, IDENTITY, "model of clsp diffusion train")
    if found is not None and found != _identity(anchors, config):
        raise InputError(f"{out} holds a model trained with other settings ({out / IDENTITY}); choose another --out")
    return (out / "model_index.json").exists()


def _identity(anchors: Anchors, config: DiffusionConfig) -> bytes:
    settings = config.model_dump(mode="json", exclude={"path", "workers", "checkpoint_steps"})
    return canonical_json({"anchors": anchors.digest, "size": anchors.size, **settings})


def _save_checkpoint(out: Path, net, ema: EMAModel, optimizer, step: int) -> None:
    state = {"unet": net.state_dict(), "ema": ema.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
    with replacing(out / CHECKPOINT) as file:
        torch.save(state, file)


def _load_checkpoint(out: Path, net, ema: EMAModel, optimizer) -> int:
    if not (out / CHECKPOINT).exists():
        return 0
    state = torch.load(out / CHECKPOINT, map_location="cpu", weights_only=True)
    net.load_state_dict(state["unet"])
    ema.load_state_dict(state["ema"])
    ema.to(next(net.parameters()).device)  # its own loading drops the device
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


def _save_pipeline(net: UNet2DModel, scheduler: DDPMScheduler, out: Path) -> None:
    """Save in diffusers' format; `model_index.json`, whose presence means «finished», comes last."""
    staging = out / ".pipeline.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    with contextlib.redirect_stdout(None):
        DDPMPipeline(net, scheduler).save_pretrained(staging)
    for part in ("unet", "scheduler"):
        shutil.rmtree(out / part, ignore_errors=True)
        (staging / part).rename(out / part)
    (staging / "model_index.json").rename(out / "model_index.json")
    shutil.rmtree(staging)
    (out / CHECKPOINT).unlink(missing_ok=True)
