"""Keep what a run has besides its weights: the losses of the epoch, the log, the checkpoints."""

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ..core import json_line, write_file
from ..shards import PairLoader
from .checkpoint import checkpoints, load_checkpoint, save_checkpoint
from .config import PretrainConfig
from .health import Health, joined, measure_health
from .methods import Method
from .run import LOG, read_rows

log = logging.getLogger(__name__)


class Progress:
    """Sums losses up to the epoch's means, writes the log and the checkpoints, and goes on from the last one."""

    def __init__(
        self,
        accelerator: Accelerator,
        method: Method,
        optimizer: Any,
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
        self.rows: list[dict[str, Any]] = []
        self.started = time.time()

    def resume(self) -> int:
        """Go on from the last checkpoint, if there is one, and return the next step."""
        saved = checkpoints(self.out)
        if saved:
            state = load_checkpoint(saved[-1], self.method, self.optimizer)
            self.loader.load_state_dict(state["data"])
            for name, value in state["sums"].items():
                self.sums[name] = torch.tensor(value, device=self.accelerator.device)

        self.rows = read_rows(self.out, self.loader.batch)
        return self.loader.batch

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        """Add a step's losses to the epoch's."""
        for name, value in losses.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def end_epoch(
        self,
        epoch: int,
        rate: float,
        probe: Callable[[nn.Module], dict[str, float]] | None,
    ) -> dict[str, float]:
        """Log the epoch's means, the health of the embeddings and what the probe finds; return means and findings.

        A checkpoint is saved if one is due.
        """
        # The mean of every loss, over steps and ranks
        means = {}
        for name, value in self.sums.items():
            means[name] = self._mean_over_ranks(value) / self.loader.order.batches_per_epoch

        # The probe
        due = self.config.knn_epochs and epoch % self.config.knn_epochs == 0
        if probe and due and self.accelerator.is_main_process:
            means |= probe(self.method.backbone)

        # The log
        health = self._health(epoch)
        row = {"epoch": epoch, "step": self.loader.batch, **means, **health, "lr": rate}
        row["seconds"] = round(time.time() - self.started, 3)
        row["waited"] = round(self.loader.waited, 3)
        self.rows.append(row)
        self.accelerator.log({**means, **health}, step=self.loader.batch)
        self.sums.clear()

        config = self.config
        is_due = epoch % config.checkpoint_epochs == 0
        if is_due or epoch in (config.stable_epochs, config.epochs):
            self.save()
        return means

    def _health(self, epoch: int) -> dict[str, float]:
        """Measure the embeddings of the epoch's last batch, a mean over ranks; say if they collapse."""
        health = measure_health(joined(self.method.embeddings)).content()
        for name, value in health.items():
            on_device = torch.tensor(value, device=self.accelerator.device)
            health[name] = self._mean_over_ranks(on_device)

        found = Health(**health)
        before = [row["deviation"] for row in self.rows if "deviation" in row]
        largest = max([found.deviation, *before])
        if found.collapses(largest) and self.accelerator.is_main_process:
            log.warning(
                "clsp: epoch %d: this run collapses: its embeddings become all alike (deviation %.3f of 1, at most "
                "%.3f so far, RankMe %.1f); lower pretrain.synthetic.weight or pretrain.lr, or set "
                "pretrain.synthetic.warmup",
                epoch,
                found.deviation,
                largest,
                found.rankme,
            )
        return health

    def save(self) -> None:
        """Write log and checkpoint.

        The losses so far are kept as the mean over ranks, which may be other ones next time.
        """
        sums = {name: self._mean_over_ranks(value) for name, value in self.sums.items()}
        if not self.accelerator.is_main_process:
            return

        log = "".join(json_line(row) for row in self.rows)
        write_file(self.out / LOG, log.encode())

        state = {"step": self.loader.batch, "data": self.loader.state_dict(), "sums": sums}
        keep = self.config.keep_checkpoints
        save_checkpoint(self.out, self.method, self.optimizer, state, keep, self._stable_step)

    @property
    def _stable_step(self) -> int | None:
        """Return the last step before the decay of `wsd`, from which a run that is given more epochs goes on."""
        epochs = self.config.stable_epochs
        return None if epochs is None else epochs * self.loader.order.batches_per_epoch

    def _mean_over_ranks(self, value: torch.Tensor) -> float:
        mean: Any = self.accelerator.reduce(value, "mean")
        return float(mean)
