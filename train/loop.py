"""The training loop of every method, to be read in one sitting."""

import json
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import timm.optim
import torch
from accelerate import Accelerator
from torch import nn

from ..shards import (
    BatchOrder,
    InputError,
    PairDataset,
    PairLoader,
    ShardSet,
    WorkError,
    canonical_json,
    differences,
    owner_of,
    stream_seed,
    write_file,
)
from .backbone import save_backbone
from .checkpoint import checkpoints, load_checkpoint, save_checkpoint
from .config import PretrainConfig
from .methods import METHODS, Method, build_method
from .schedule import learning_rate, synthetic_weight
from .views import Views

RUN, LOG, BACKBONE = "run.json", "log.jsonl", "backbone"
UNESSENTIAL = {"workers", "knn_epochs", "checkpoint_epochs", "keep_checkpoints"}
Report = Callable[[int, int, dict[str, float]], None]
Probe = Callable[[nn.Module], dict[str, float]]


def pretrain(
    shards: ShardSet, config: PretrainConfig, out: Path, report: Report | None = None, probe: Probe | None = None
) -> Path:
    """Pretrain a backbone on a shard set; resumes from `out` by itself. Returns the backbone's folder.

    Everything random is a pure function of (seed, step, rank, view) and the order of the data one of (plan, seed,
    epoch), so a resumed run equals an uninterrupted one bit for bit on a CPU.

    Args:
        report: called after every epoch.
        probe: measures the backbone every `knn_epochs`, for the log; it must leave it as it is.

    Raises:
        InputError: `out` holds another run, the batch does not fit, or the set lacks what the method needs.
        WorkError: the loss is not finite; names the step, the keys and the last good checkpoint.
    """
    if check_run(shards, config, out):
        return out / BACKBONE
    accelerator = Accelerator(mixed_precision=config.precision)
    order = batch_order(shards, config, accelerator.process_index, accelerator.num_processes)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    method = build_method(config)
    if accelerator.is_main_process:
        _claim(shards, config, out)
    model, optimizer = accelerator.prepare(method, build_optimizer(method, config))
    dataset = PairDataset(shards, config.seed, with_candidates=config.third_view == "shards")
    per_epoch, last = order.batches_per_epoch, order.batches_per_epoch * config.epochs
    loader = PairLoader(dataset, order, last, workers=config.workers)
    saved = checkpoints(out)
    if saved:
        loader.load_state_dict(load_checkpoint(saved[-1], method, optimizer)["data"])
    log = _read_log(out, loader.batch)
    steps = _Steps(accelerator, model, optimizer, config, Views(config, shards.size, accelerator.device), order, out)
    sums: dict[str, Any] = defaultdict(float)
    started = time.time()
    model.train()
    for step, batch in enumerate(loader, start=loader.batch):
        for name, value in steps.run(step, batch).items():
            sums[name] += value
        epoch, rest = divmod(step + 1, per_epoch)
        if rest:
            continue
        means = {name: _mean_over_ranks(accelerator, value) / per_epoch for name, value in sums.items()}
        means |= _probed(probe, method.backbone, epoch, config) if accelerator.is_main_process else {}
        log.append(
            {"epoch": epoch, "step": step + 1, **means, "lr": steps.rate, "seconds": round(time.time() - started, 3)}
        )
        sums.clear()
        if accelerator.is_main_process and (epoch % config.checkpoint_epochs == 0 or epoch == config.epochs):
            write_file(out / LOG, "".join(json.dumps(row) + "\n" for row in log).encode())
            state = {"step": step + 1, "data": loader.state_dict()}
            save_checkpoint(out, method, optimizer, state, config.keep_checkpoints)
        if report:
            report(epoch, config.epochs, means)
    if accelerator.is_main_process:
        _export(method, config, shards.size, out)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out / BACKBONE


def _probed(probe: Probe | None, backbone: nn.Module, epoch: int, config: PretrainConfig) -> dict[str, float]:
    due = config.knn_epochs and epoch % config.knn_epochs == 0
    return probe(backbone) if probe and due else {}


def _mean_over_ranks(accelerator: Accelerator, value: torch.Tensor) -> float:
    mean: Any = accelerator.reduce(value, "mean")
    return float(mean)


class _Steps:
    """One optimisation step at a time."""

    def __init__(
        self, accelerator, model, optimizer, config: PretrainConfig, views: Views, order: BatchOrder, out: Path
    ):
        self.accelerator, self.model, self.optimizer = accelerator, model, optimizer
        self.config, self.views, self.order, self.out = config, views, order, out
        self.rate = 0.0

    def run(self, step: int, batch) -> dict[str, torch.Tensor]:
        config, rank = self.config, self.accelerator.process_index
        ordinary = METHODS[config.method].views
        views = [self.views(batch.anchors_BCHW, view, step, rank) for view in range(1, ordinary + 1)]
        third, weights = None, None
        if config.third_view != "none":
            images = batch.candidates_BCHW if config.third_view == "shards" else batch.anchors_BCHW
            third = self.views(images, ordinary + 1, step, rank)
            weights = self._sample_weights(step, len(third))
        self.rate = learning_rate(step, self.order.batches_per_epoch, config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        torch.manual_seed(stream_seed(config.seed, step, rank, "model"))
        with self.accelerator.autocast():
            losses = self.model(views, third, weights)
        factor = synthetic_weight(step, self.order.batches_per_epoch, config)
        loss: Any = sum(value * (factor if name == "synthetic" else 1.0) for name, value in losses.items())
        if not torch.isfinite(loss):
            self._stop_on(loss, step, batch.keys)
        self.accelerator.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}

    def _sample_weights(self, step: int, count: int) -> torch.Tensor | None:
        if self.config.synthetic.probability == 1:
            return None
        torch.manual_seed(stream_seed(self.config.seed, step, self.accelerator.process_index, "synthetic"))
        return (torch.rand(count) < self.config.synthetic.probability).float().to(self.accelerator.device)

    def _stop_on(self, loss: torch.Tensor, step: int, keys: list[str]) -> None:
        good = checkpoints(self.out)
        raise WorkError(
            f"the loss is {loss.item()} at step {step} (anchors {', '.join(keys[:4])}, …); the last good checkpoint is "
            f"{good[-1] if good else 'none'}; lower pretrain.lr or pretrain.synthetic.weight"
        )


def batch_order(shards: ShardSet, config: PretrainConfig, rank: int = 0, world_size: int = 1) -> BatchOrder:
    """The run's order of batches.

    Raises:
        InputError: the batch is larger than the set or not divisible by the number of processes.
    """
    if config.batch_size > len(shards):
        raise InputError(f"pretrain.batch_size is {config.batch_size}, the set {shards.root} has {len(shards)} anchors")
    if config.batch_size % world_size:
        raise InputError(f"pretrain.batch_size is {config.batch_size}, not divisible by the {world_size} processes")
    return BatchOrder(shards.shard_sizes, shards.plan.digest, config.seed, config.batch_size, rank, world_size)


def build_optimizer(method: Method, config: PretrainConfig) -> torch.optim.Optimizer:
    """timm's optimizer of that name; LARS leaves 1-D parameters without decay and without adaptation."""
    kwargs: dict[str, Any] = {} if config.optimizer == "adamw" else {"momentum": config.momentum}
    if config.optimizer == "sgd":
        kwargs["nesterov"] = False
    return timm.optim.create_optimizer_v2(
        method,
        opt=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        filter_bias_and_bn=config.optimizer != "sgd",
        **kwargs,
    )


def check_run(shards: ShardSet, config: PretrainConfig, out: Path) -> bool:
    """True if `out` holds the finished run of these settings on this set, False if it can start or go on there.

    Raises:
        InputError: it holds another run (naming what differs) or something else.
    """
    content = owner_of(out, RUN, "run of clsp pretrain")
    if content is None:
        return False
    found, run = json.loads(content), _identity(shards, config)
    different = differences({key: found.get(key) for key in run}, run)
    if different:
        raise InputError(f"{out} holds another run ({'; '.join(different)}); choose another --out")
    return (out / BACKBONE).exists()


def layers_used(out: Path) -> list[str] | None:
    """The layers that the run in `out` reads, or None where none has begun: a set may have grown since."""
    if not (out / RUN).exists():
        return None
    return sorted(json.loads((out / RUN).read_text()).get("data", {}).get("layers", {})) or None


def _identity(shards: ShardSet, config: PretrainConfig) -> dict[str, Any]:
    """What makes a run this run and no other."""
    return {
        "name": config.run_name,
        "seed": config.seed,
        "data": shards.identity,
        "pretrain": config.model_dump(mode="json", exclude=UNESSENTIAL),
    }


def _claim(shards: ShardSet, config: PretrainConfig, out: Path) -> None:
    versions = {name: version(name) for name in ("clsp", "torch", "timm", "kornia", "accelerate")}
    if not (out / RUN).exists():
        facts = {"set": shards.set_id, "versions": versions}
        write_file(out / RUN, canonical_json({**_identity(shards, config), **facts}))


def _read_log(out: Path, step: int) -> list[dict[str, Any]]:
    """The log's rows up to `step`: a resumed run writes the later ones again."""
    if not (out / LOG).exists():
        return []
    rows = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
    return [row for row in rows if row["step"] <= step]


def _export(method: Method, config: PretrainConfig, size: int, out: Path) -> None:
    """Save the backbone in timm's form; the folder's presence means «finished»."""
    staging = out / f".{BACKBONE}.tmp"
    save_backbone(method.backbone, config, size, staging)
    staging.rename(out / BACKBONE)
