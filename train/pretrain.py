"""The training loop of every method, to be read in one sitting."""

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from ..core import StopRequested, WorkError, stop_deferred, stream_seed, write_file
from ..shards import PairLoader, ShardSet
from .build import batch_order, build_optimizer, pair_loader, prepared_method
from .checkpoint import checkpoints, load_checkpoint, save_checkpoint
from .config import PretrainConfig
from .methods import Method
from .run import BACKBONE, LOG, check_run, claim_folder, export_backbone, read_rows
from .step import NotFiniteError, Stepper
from .views import Views

TRACKED = "tensorboard"
"""The folder of TensorBoard's files in the run's own, and the name of the project for other trackers."""
Report = Callable[[int, int, dict[str, float]], None]
Probe = Callable[[nn.Module], dict[str, float]]


def pretrain(
    shards: ShardSet,
    config: PretrainConfig,
    out: Path,
    report: Report | None = None,
    probe: Probe | None = None,
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

    handlers: list[Any] = [DistributedDataParallelKwargs(broadcast_buffers=False), _patience()]
    logging: Any = {"log_with": list(config.trackers) or None, "project_dir": out}
    accelerator = Accelerator(mixed_precision=config.precision, kwargs_handlers=handlers, **logging)
    order = batch_order(shards, config, accelerator.process_index, accelerator.num_processes)
    torch.manual_seed(stream_seed(config.seed, "weights"))
    method = prepared_method(config, accelerator.device)
    loader = pair_loader(shards, config, order)

    if accelerator.is_main_process:
        claim_folder(shards, config, out)

    accelerator.init_trackers(
        TRACKED, {"run": config.run_name, "seed": config.seed, "epochs": config.epochs}
    )
    model, optimizer = accelerator.prepare(method, build_optimizer(method, config))
    run = _Run(accelerator, method, optimizer, config, loader, out)
    views = Views(config, shards.size, accelerator.device)
    stepper = Stepper(
        accelerator, method, model, optimizer, config, order, views, shards.candidates
    )
    model.train()

    with stop_deferred() as stop_requested:
        for step, batch in enumerate(loader, start=run.resume()):
            try:
                run.add(stepper.run(step, batch))
            except NotFiniteError as error:
                raise run.not_finite(error, step, batch.keys) from error

            epoch, rest = divmod(step + 1, order.batches_per_epoch)
            if not rest:
                means = run.end_epoch(epoch, stepper.rate, probe)
                if report:
                    report(epoch, config.epochs, means)

            if _on_any_rank(accelerator, stop_requested()):
                run.save()
                accelerator.end_training()
                raise StopRequested

    if accelerator.is_main_process:
        export_backbone(method, config, shards.size, out)

    accelerator.wait_for_everyone()
    accelerator.end_training()

    return out / BACKBONE


class _Run:
    """What a run keeps besides its weights: where it is, the sums of the epoch's losses, the log, the checkpoints."""

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        optimizer,
        config: PretrainConfig,
        loader: PairLoader,
        out: Path,
    ):
        self.accelerator = accelerator
        self.method = method
        self.optimizer = optimizer
        self.config = config
        self.loader = loader
        self.out = out
        self.sums: dict[str, torch.Tensor] = {}
        self.log: list[dict[str, Any]] = []
        self.started = time.time()

    def resume(self) -> int:
        """Go on from the last checkpoint, if there is one; returns the next step."""
        saved = checkpoints(self.out)
        if saved:
            state = load_checkpoint(saved[-1], self.method, self.optimizer)
            self.loader.load_state_dict(state["data"])
            device = self.accelerator.device
            self.sums = {
                name: torch.tensor(value, device=device) for name, value in state["sums"].items()
            }

        self.log = read_rows(self.out, self.loader.batch)
        return self.loader.batch

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        """Add a step's losses to the epoch's."""
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def end_epoch(self, epoch: int, rate: float, probe: Probe | None) -> dict[str, float]:
        """Log the epoch's means and what the probe finds, and save a checkpoint if one is due."""
        per_epoch = self.loader.order.batches_per_epoch
        main = self.accelerator.is_main_process
        means = {
            name: _mean_over_ranks(self.accelerator, value) / per_epoch
            for name, value in self.sums.items()
        }
        means |= _probed(probe, self.method.backbone, epoch, self.config) if main else {}
        spent = {
            "seconds": round(time.time() - self.started, 3),
            "waited": round(self.loader.waited, 3),
        }
        self.log.append({"epoch": epoch, "step": self.loader.batch, **means, "lr": rate, **spent})
        self.accelerator.log(means, step=self.loader.batch)
        self.sums.clear()

        if epoch % self.config.checkpoint_epochs == 0 or epoch == self.config.epochs:
            self.save()

        return means

    def save(self) -> None:
        """Write log and checkpoint; the losses so far are the mean over ranks, which may be other ones next time."""
        sums = {
            name: _mean_over_ranks(self.accelerator, value) for name, value in self.sums.items()
        }
        if not self.accelerator.is_main_process:
            return
        write_file(self.out / LOG, "".join(json.dumps(row) + "\n" for row in self.log).encode())
        state = {"step": self.loader.batch, "data": self.loader.state_dict(), "sums": sums}
        save_checkpoint(self.out, self.method, self.optimizer, state, self.config.keep_checkpoints)

    def not_finite(self, error: NotFiniteError, step: int, keys: list[str]) -> WorkError:
        """The error that names the step, its anchors and what is still good."""
        good = checkpoints(self.out)
        return WorkError(
            f"the loss is {error.args[0]} at step {step} (anchors {', '.join(keys[:4])}, …); the last good checkpoint "
            f"is {good[-1] if good else 'none'}; lower pretrain.lr or pretrain.synthetic.weight"
        )


def _probed(
    probe: Probe | None, backbone: nn.Module, epoch: int, config: PretrainConfig
) -> dict[str, float]:
    due = config.knn_epochs and epoch % config.knn_epochs == 0
    return probe(backbone) if probe and due else {}


def _patience() -> InitProcessGroupKwargs:
    return InitProcessGroupKwargs(
        timeout=timedelta(hours=12)
    )  # the others wait while the first process probes


def _mean_over_ranks(accelerator: Accelerator, value: torch.Tensor) -> float:
    mean: Any = accelerator.reduce(value, "mean")
    return float(mean)


def _on_any_rank(accelerator: Accelerator, here: bool) -> bool:
    """Whether a stop was requested on any rank: all of them have to stop behind the same step."""
    if accelerator.num_processes == 1:
        return here
    return _mean_over_ranks(accelerator, torch.tensor(float(here), device=accelerator.device)) > 0
