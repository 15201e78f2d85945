"""Contrast over a batch that does not fit into memory at once: GradCache (Gao et al., RepL4NLP 2021, section 3.2).

Shape legend: B samples of this process, D dimensions of a projection.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import distributed

from ..core import stream_seed
from .distributed import rank_and_world_size
from .inputs import StepInputs
from .methods import Method
from .methods.base import running_statistics_kept

Autocast = Callable[[], AbstractContextManager[Any]]
Total = Callable[[dict[str, torch.Tensor]], torch.Tensor]


def backward_over_batch(
    method: Method,
    inputs: StepInputs,
    parts: int,
    total: Total,
    autocast: Autocast,
    seed: tuple[object, ...],
) -> dict[str, torch.Tensor]:
    """Add up the gradients of a batch's loss, of which one part at a time has a graph; return its losses.

    The gradients are those of the undivided batch over all processes, but that batch norms see a part at a time: their
    statistics are a part's, as in a smaller batch. Gradients are averaged over processes here, so the method is not to
    be called through DDP.

    Args:
        inputs: of this process's whole batch.
        parts: equal ones that the batch is divided into.
        total: returns what is minimised, of the method's losses.
        seed: of the random numbers inside of the model; each part's are the same in both passes over it.
    """
    pieces = list(inputs.split(parts))

    # Embed every part without a graph, y = f(x)
    embedded = []
    with torch.no_grad(), running_statistics_kept(method):
        for number, piece in enumerate(pieces):
            torch.manual_seed(stream_seed(*seed, number))
            with autocast():
                embedded.append(method.project(piece.views, piece.third))

    # The loss of the whole batch, and its gradient with respect to the embeddings, u = ∂L/∂y
    y_BD = []
    for of_view in zip(*embedded, strict=True):
        y_BD.append(torch.cat(of_view).requires_grad_())

    torch.manual_seed(stream_seed(*seed))
    with autocast():
        losses = method.losses(y_BD, inputs.views, inputs.weights_B, inputs.labels_B)
    loss = total(losses)
    loss.backward()

    # Embed every part again, now with a graph, and go on backwards from u: ∂L/∂θ = Σ u · ∂y/∂θ
    gradients = [y.grad.chunk(parts) for y in y_BD]  # type: ignore[union-attr]
    for number, piece in enumerate(pieces):
        torch.manual_seed(stream_seed(*seed, number))
        with autocast():
            projections = method.project(piece.views, piece.third)
        torch.autograd.backward(projections, [gradient[number] for gradient in gradients])

    _average_gradients(list(method.parameters()))
    return {"loss": loss.detach(), **{name: value.detach() for name, value in losses.items()}}


def _average_gradients(parameters: Sequence[torch.nn.Parameter]) -> None:
    """Replace the gradients by their mean over processes, as DDP does."""
    _, world_size = rank_and_world_size()
    if world_size == 1:
        return

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    distributed.all_reduce(together)
    together /= world_size

    sizes = [gradient.numel() for gradient in gradients]
    for gradient, mean in zip(gradients, together.split(sizes), strict=True):
        gradient.copy_(mean.view_as(gradient))
