"""The loop of a training of stage 1: steps, and what is due between them: figures, samples, checkpoints, stops."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, ClassVar

import torch
from accelerate import Accelerator

from ..core import (
    InputError,
    StopRequested,
    WorkError,
    holding,
    make_accelerator,
    on_any_rank,
    replacing,
    stop_deferred,
    training_precision,
)
from .config import TrainingSettings
from .train_images import TrainBatch
from .training_folder import CHECKPOINT, TrainingFolder, cut_log, write_log_row

LOGGED = 50
"""Steps between two rows of the log."""
Report = Callable[[int, int, dict[str, float]], None]


class Training(ABC):
    """Holds what is trained, and does what is due between steps."""

    section: ClassVar[str]
    """The section of the recipe, for messages."""
    net: Any
    """The module with the weights, without what accelerate puts around it."""
    optimizer: Any

    def __init__(
        self, accelerator: Accelerator, settings: TrainingSettings, folder: TrainingFolder
    ):
        self.accelerator = accelerator
        self.settings = settings
        self.folder = folder
        self.out = folder.out
        self.losses: list[torch.Tensor] = []
        """Those of the steps since the last row of the log."""

    @abstractmethod
    def batches(self, first: int) -> AbstractContextManager[Iterator[TrainBatch]]:
        """Read this rank's images of the steps from `first` on inside a block."""

    @abstractmethod
    def step(self, batch: TrainBatch, step: int) -> None:
        """Do one step; everything random in it is a pure function of (seed, step, rank)."""

    @abstractmethod
    def draw(self, done: int) -> dict[str, float]:
        """Save a grid of images after so many steps and measure them; the training is not disturbed."""

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """Return what a checkpoint keeps the states of, by name."""

    @abstractmethod
    def finish(self) -> None:
        """Save the result, then remove the checkpoint."""

    def update(self, loss: torch.Tensor, step: int) -> None:
        """Do the optimizer's step by the gradient of a loss, at the rate of this step."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(step)

        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(self.net.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def mean_losses(self) -> dict[str, float]:
        """Return the mean of the losses since the last row of the log."""
        return {"loss": torch.stack(self.losses).mean().item()}

    def look(self, done: int) -> dict[str, float]:
        """Return the metrics that are due after so many steps; draws, logs and saves what is due too."""
        config = self.settings
        is_logged = done % LOGGED == 0 or done == config.steps
        is_saved = done % config.checkpoint_steps == 0 and done < config.steps
        if is_logged or is_saved:
            self.check_finite(done)

        metrics = {}
        if is_logged:
            metrics |= self.mean_losses()
            self.losses.clear()

        if self.accelerator.is_main_process:
            if config.sample_steps and done % config.sample_steps == 0:
                metrics |= self.draw(done)
            if metrics:
                write_log_row(self.out, done, metrics)
            if is_saved:
                self.save(done)

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
            f"lower {self.section}.lr, or train in float32 ({self.section}.precision=no), "
            f"into {'another' if is_saved else 'the same'} --out"
        )

    def stops(self, done: int, requested: bool) -> bool:
        """Save a checkpoint if a stop was requested on any rank: all of them stop behind the same step."""
        requested = on_any_rank(self.accelerator, requested)
        if requested:
            self.check_finite(done)
        if requested and self.accelerator.is_main_process:
            self.save(done)
        return requested

    def save(self, step: int) -> None:
        """Write the checkpoint after so many steps."""
        states = {name: part.state_dict() for name, part in self.parts().items()}
        with replacing(self.out / CHECKPOINT) as file:
            torch.save({"step": step, "losses": self.losses, **states}, file)

    def load(self) -> int:
        """Go on from the checkpoint, if there is one; returns the steps that it has done."""
        if not (self.out / CHECKPOINT).exists():
            return 0

        state = torch.load(self.out / CHECKPOINT, map_location="cpu", weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])

        self.losses = [loss.to(self.accelerator.device) for loss in state["losses"]]
        return state["step"]


def train_in_folder(
    folder: TrainingFolder,
    settings: TrainingSettings,
    make: Callable[[Accelerator], Training],
    report: Report | None,
    recipe: bytes,
    section: str,
) -> None:
    """Train until the folder has its result; does nothing where it has.

    Args:
        make: returns what is trained, on every process; called in a folder that no other process works in.
        report: called after every step with (steps done, steps, the latest metrics).
        recipe: the content of `recipe.toml`; empty: there is none.
        section: of the recipe, for messages.

    Raises:
        InputError: the folder holds something else, or another process works there.
        StopRequested: after SIGTERM or Ctrl-C on any rank, behind a checkpoint.
        WorkError: the weights are not finite any more; names the last good checkpoint.
    """
    if folder.is_finished():
        return

    # Processes; the others wait while the first one draws images
    accelerator = make_accelerator(settings.precision)
    if settings.batch_size % accelerator.num_processes:
        raise InputError(
            f"{section}.batch_size is {settings.batch_size}, "
            f"not divisible by the {accelerator.num_processes} processes"
        )

    # The folder, for this process alone
    agree = partial(on_any_rank, accelerator)
    with holding(folder.out, accelerator.is_main_process, agree) as is_locked:
        if folder.is_finished(is_locked):  # another may have finished it
            return
        if accelerator.is_main_process:
            folder.claim(recipe)

        accelerator.wait_for_everyone()
        _run(make(accelerator), report)


def _run(training: Training, report: Report | None) -> None:
    """Train from the checkpoint to the result."""
    accelerator = training.accelerator
    steps = training.settings.steps

    # The step that was reached
    first = training.load()
    if accelerator.is_main_process:
        cut_log(training.out, first)

    # Steps
    latest: dict[str, float] = {}
    reading = training.batches(first)
    with training_precision(), stop_deferred() as stop_requested, reading as batches:
        for step, batch in enumerate(batches, start=first):
            training.step(batch, step)
            latest = {**latest, **training.look(step + 1)}
            if report:
                report(step + 1, steps, latest)
            if training.stops(step + 1, stop_requested()):
                raise StopRequested

    # The result
    if accelerator.is_main_process:
        training.finish()

    accelerator.wait_for_everyone()
    accelerator.end_training()
