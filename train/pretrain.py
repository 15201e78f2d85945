"""Pretraining, to be read from top to bottom: set-up, loop and step of every method."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from torch import nn

from ..core import (
    StopRequested,
    WorkError,
    holding,
    make_accelerator,
    on_any_rank,
    stop_deferred,
    stream_seed,
    training_precision,
)
from ..shards import PairBatch, ShardSet
from ..shards.reading.choose_pixels import open_pixels
from .build import batch_order, build_optimizer, pair_loader, prepared_method
from .checkpoint import checkpoints
from .config import PretrainConfig
from .grad_cache import backward_over_batch
from .inputs import InputMaker, StepInputs
from .loss_watch import CHECKED, LossWatch, NotFiniteError, check_weights
from .methods import Method
from .progress import Progress
from .run import BACKBONE, TRACKED, check_folder, check_run, claim_folder, export_backbone
from .schedule import learning_rate, synthetic_weight
from .views import Views

Report = Callable[[int, int, dict[str, float]], None]
Probe = Callable[[nn.Module], dict[str, float]]


ASKED = 10
"""Steps after which several GPUs ask each other for a stop: to hear an answer they wait for all that was queued."""


def pretrain(
    shards: ShardSet,
    config: PretrainConfig,
    out: Path,
    report: Report | None = None,
    probe: Probe | None = None,
    recipe: bytes = b"",
) -> Path:
    """Pretrain a backbone on a shard set and return the backbone's folder; resumes from `out` by itself.

    Everything random is a pure function of (seed, step, rank, view) and the order of the data one of (plan, seed,
    epoch), so a resumed run equals an uninterrupted one bit for bit on a CPU.

    Args:
        report: called after every step with (steps done, steps, what was found at the end of the last epoch: the means
            of its losses, and what the probe found); nothing, before an epoch has ended in this process.
        probe: measures the backbone every `knn_epochs`, for the log; it must leave it as it is.
        recipe: the content of `recipe.toml`, which is kept beside the run; empty: there is none.

    Raises:
        InputError: `out` holds another run or another process works there, the batch does not fit, or the set lacks
            what the method needs.
        WorkError: the loss is not finite; names the step, the keys and the last good checkpoint. On a GPU it is told
            up to `CHECKED` steps later, but before a log or a checkpoint is written.
    """
    if check_run(shards, config, out):
        return out / BACKBONE

    # Processes
    accelerator = make_accelerator(
        config.precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        log_with=list(config.trackers) or None,
        project_dir=out,
    )
    agree = partial(on_any_rank, accelerator)
    with holding(out, accelerator.is_main_process, agree) as is_locked:
        if check_folder(shards, config, out, is_locked):  # another may have finished it since
            return out / BACKBONE
        return _pretrain(accelerator, shards, config, out, report, probe, recipe)


def _pretrain(
    accelerator: Accelerator,
    shards: ShardSet,
    config: PretrainConfig,
    out: Path,
    report: Report | None,
    probe: Probe | None,
    recipe: bytes,
) -> Path:
    """Pretrain in a folder that no other process works in."""
    # Data
    rank = accelerator.process_index
    order = batch_order(shards, config, rank, accelerator.num_processes)
    per_epoch = order.batches_per_epoch

    # Method and optimizer
    torch.manual_seed(stream_seed(config.seed, "weights"))
    method = prepared_method(config, accelerator.device)
    loader = pair_loader(shards, config, order)
    loader.dataset.pixels = open_pixels(shards, config.cache, accelerator.device, quiet=rank > 0)
    if accelerator.is_main_process:
        claim_folder(shards, config, out, recipe)
    trackers = {"run": config.run_name, "seed": config.seed, "epochs": config.epochs}
    accelerator.init_trackers(TRACKED, trackers)
    model, optimizer = accelerator.prepare(method, build_optimizer(method, config))

    # One step, and what is kept of the steps
    size = config.view_size(shards.size)
    views = Views(config, size, accelerator.device)
    inputs = InputMaker(config, views, accelerator.device, method.views, shards.candidates, rank)
    trainer = Trainer(accelerator, method, model, optimizer, config, inputs, per_epoch)
    progress = Progress(accelerator, method, optimizer, config, loader, out)

    first = progress.resume()
    steps = per_epoch * config.epochs
    means: dict[str, float] = {}
    model.train()
    reading = loader.reading()
    naming = _naming_what_is_good(out)
    with training_precision(), stop_deferred() as stop_requested, reading as batches, naming:
        for step, batch in enumerate(batches, start=first):
            epoch, steps_into_next = divmod(step + 1, per_epoch)
            ends_epoch = steps_into_next == 0

            # Forward, backward, optimizer; and a look at the losses, always before anything is written
            losses = trainer.step(step, batch)
            if ends_epoch or (step + 1) % CHECKED == 0:
                trainer.check(step)
            progress.add(losses)

            # Log and checkpoint
            if ends_epoch:
                means = progress.end_epoch(epoch, trainer.rate, probe)
            if report:
                report(step + 1, steps, means)

            # Stop behind the same step on all ranks
            if not ends_epoch and not _asks_for_stop(accelerator, step):
                continue
            if on_any_rank(accelerator, stop_requested()):
                trainer.check(step)
                progress.save()
                accelerator.end_training()
                raise StopRequested

    # The result
    if accelerator.is_main_process:
        export_backbone(method, config, size, out)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return out / BACKBONE


class Trainer:
    """Does one optimisation step at a time; everything random comes from the step's number.

    Args:
        method: the method itself.
        model: what accelerate made of it.
        inputs: makes a step's inputs of a batch.
        per_epoch: steps in an epoch.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: PretrainConfig,
        inputs: InputMaker,
        per_epoch: int,
    ):
        self.accelerator = accelerator
        self.method = method
        self.model = model
        self.optimizer = optimizer
        self.config = config
        self.inputs = inputs
        self.per_epoch = per_epoch
        self.rate = 0.0
        self.watch = LossWatch(accelerator)

    def step(self, step: int, batch: PairBatch) -> dict[str, torch.Tensor]:
        """Do a step and return the losses of this rank's batch; `loss` is the one that was minimised.

        Raises:
            NotFiniteError: on a CPU, before the optimizer's step; on a GPU `check` tells.
        """
        # Learning rate, λ and the momentum of a key encoder
        self.rate = learning_rate(step, self.per_epoch, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        weight = synthetic_weight(step, self.per_epoch, self.config)
        self.method.before_step(step, self.per_epoch * self.config.epochs)

        # The embeddings of an epoch's last batch are looked at
        self.method.embeddings.clear()
        self.method.keeps_embeddings = (step + 1) % self.per_epoch == 0

        # Views
        inputs = self.inputs(step, batch)
        rank = self.accelerator.process_index
        torch.manual_seed(stream_seed(self.config.seed, step, rank, "model"))

        # Forward and backward
        if self.config.cached_parts > 1:
            losses = self._over_batch(step, batch.keys, inputs, weight)
        else:
            losses = self._part_by_part(step, batch.keys, inputs, weight)

        # Optimizer
        self.optimizer.step()
        self.optimizer.zero_grad()
        return losses

    def check(self, step: int) -> None:
        """Look at the losses since the last check, and at the weights after this step.

        Raises:
            NotFiniteError: something is not finite; names the first step whose loss was not.
        """
        self.watch.check()
        check_weights(step, [*self.method.parameters(), *self.method.buffers()])

    def _over_batch(
        self, step: int, keys: Sequence[str], inputs: StepInputs, weight: float
    ) -> dict[str, torch.Tensor]:
        """Go forward and backward over a batch in parts that contrast with all of it."""

        def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
            loss = total_loss(losses, weight)
            self.watch.add(step, keys, loss)
            return loss

        with self.accelerator.no_sync(self.model):
            return backward_over_batch(
                self.method,
                inputs,
                self.config.cached_parts,
                total,
                lambda: self.accelerator.autocast(),
                (self.config.seed, step, self.accelerator.process_index, "model"),
            )

    def _part_by_part(
        self, step: int, keys: Sequence[str], inputs: StepInputs, weight: float
    ) -> dict[str, torch.Tensor]:
        """Go forward and backward over each part by itself, with the gradients exchanged behind the last."""
        parts = self.config.accumulation
        sums: dict[str, torch.Tensor] = {}
        for number, part in enumerate(inputs.split(parts), start=1):
            waiting = self.accelerator.no_sync(self.model) if number < parts else nullcontext()
            with waiting:
                # Forward
                with self.accelerator.autocast():
                    losses = self.model(part.views, part.third, part.weights_B, part.labels_B)
                loss = total_loss(losses, weight)
                self.watch.add(step, keys, loss)

                # Backward
                self.accelerator.backward(loss / parts)

            for name, value in {"loss": loss, **losses}.items():
                sums[name] = sums.get(name, 0) + value.detach() / parts

        return sums


def total_loss(losses: dict[str, torch.Tensor], weight: float) -> torch.Tensor:
    """Return the loss that is minimised: the method's own losses and `λ · synthetic` (CLSP, section 3.3)."""
    total: Any = 0
    for name, value in losses.items():
        total = total + value * (weight if name == "synthetic" else 1.0)
    return total


@contextmanager
def _naming_what_is_good(out: Path) -> Iterator[None]:
    """Turn an error that names the step and its anchors into one that names what is still good, too."""
    try:
        yield
    except NotFiniteError as error:
        saved = checkpoints(out)
        good = saved[-1] if saved else "none"
        raise WorkError(
            f"{error}; the last good checkpoint is {good}; "
            "lower pretrain.lr or pretrain.synthetic.weight, "
            f"into {'another' if saved else 'the same'} --out"
        ) from error


def _asks_for_stop(accelerator: Accelerator, step: int) -> bool:
    """Return True behind the steps at which ranks agree on a stop: all, but not on several GPUs."""
    is_free = accelerator.num_processes == 1 or accelerator.device.type == "cpu"
    return is_free or (step + 1) % ASKED == 0
