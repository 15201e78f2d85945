"""Notice losses and weights that are not finite, without making the host wait for the device at every step."""

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from accelerate import Accelerator

CHECKED = 50
"""Steps after which a GPU's losses are looked at; at the end of an epoch and before a checkpoint they always are."""
NAMED = 4
"""Keys that the error names."""


class NotFiniteError(Exception):
    """Tells of a loss or of weights that are not finite; the message says which, and of which step."""


class LossWatch:
    """Notes the first loss that is not finite.

    On a CPU, where a look costs nothing, it is told at once. On a GPU its step and its value are noted there, and the
    host reads them when `check` is called.

    >>> watch = LossWatch(Accelerator(cpu=True))
    >>> watch.add(0, ["train_00000000"], torch.tensor(1.5))
    >>> watch.add(1, ["train_00000001"], torch.tensor(float("nan")))
    Traceback (most recent call last):
    ...
    clsp.train.loss_watch.NotFiniteError: the loss is nan at step 1 (anchors train_00000001, …)
    """

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.keys: dict[int, Sequence[str]] = {}
        """Of the steps since the last check."""
        # The step and the loss; -1: all losses were finite
        self.first_2 = torch.tensor([-1.0, 0.0], dtype=torch.float64, device=accelerator.device)

    @torch.no_grad()
    def add(self, step: int, keys: Sequence[str], loss: torch.Tensor) -> None:
        """Note the loss of a step, or of a part of it.

        Raises:
            NotFiniteError: on a CPU, if it is not finite.
        """
        if loss.device.type == "cpu":
            if not torch.isfinite(loss):
                raise NotFiniteError(_of_loss(step, float(loss), keys))
            return

        self.keys[step] = keys[:NAMED]
        is_first = ~torch.isfinite(loss) & (self.first_2[0] < 0)
        found_2 = torch.stack([torch.full_like(self.first_2[0], step), loss.double()])
        self.first_2 = torch.where(is_first, found_2, self.first_2)

    def check(self) -> None:
        """Look at the losses since the last check, on all ranks.

        Raises:
            NotFiniteError: one was not finite, on any rank; names the first.
        """
        if self.accelerator.device.type == "cpu":
            return

        # The first one of all ranks
        firsts_R2 = self.first_2[None]
        if self.accelerator.num_processes > 1:
            firsts_R2 = cast(torch.Tensor, self.accelerator.gather(firsts_R2))
        found = [(step, rank, value) for rank, (step, value) in enumerate(firsts_R2.tolist())]
        found = [first for first in found if first[0] >= 0]
        if not found:
            self.keys.clear()
            return

        # Its keys are known to its own rank
        step, rank, value = min(found)
        if rank != self.accelerator.process_index:
            raise NotFiniteError(f"the loss of process {rank} is {value} at step {int(step)}")
        raise NotFiniteError(_of_loss(int(step), value, self.keys[int(step)]))


def _of_loss(step: int, value: float, keys: Sequence[str]) -> str:
    return f"the loss is {value} at step {step} (anchors {', '.join(keys[:NAMED])}, …)"


@torch.no_grad()
def check_weights(step: int, tensors: Iterable[torch.Tensor]) -> None:
    """Look at the weights after a step: a finite loss, too, can have a gradient that is not.

    Raises:
        NotFiniteError: one of them is not finite.
    """
    weights = [tensor for tensor in tensors if tensor.is_floating_point()]
    largest = torch.stack(torch._foreach_norm(weights, ord=float("inf")))
    if not torch.isfinite(largest).all():
        raise NotFiniteError(f"the weights are not finite any more after step {step}")
