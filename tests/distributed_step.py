"""Run by test_distributed.py in each process of a group: every method's gradients and queues of one step."""

from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from clsp.train import METHODS, PretrainConfig, build_method
from clsp.train.grad_cache import backward_over_batch
from clsp.train.inputs import StepInputs
from clsp.train.pretrain import total_loss

NETWORKS = {
    "backbone_kwargs": {
        "channels": [8, 8, 8, 8],
        "layers": [1, 1, 1, 1],
        "norm_layer": "groupnorm1",
    },
    "projector_hidden": 16,
    "projector_out": 8,
    "predictor_hidden": 16,
    "head_norm": "layer",
    "projector_norm": True,
}


TERMS = {
    "alignment": {},
    "alignment-3": {"candidates": 3},
    "mean_target-3": {"candidates": 3, "loss": "mean_target"},
    "multi_positive-3": {"candidates": 3, "loss": "multi_positive"},
    "robust-3": {"candidates": 3, "loss": "robust"},
    "multi_positive": {"loss": "multi_positive"},
    "cached": {},
    "cached-multi_positive-3": {"candidates": 3, "loss": "multi_positive"},
}
"""Settings of the synthetic term; those with several candidates get weights that are 1 in the second half only.

Where they begin with «cached», two processes contrast over their batch in two parts each, one process at once."""
WEIGHTS_BM = torch.ones(8, 3)
WEIGHTS_BM[0] = torch.tensor([1.5, 1.5, 0.0])
WEIGHTS_BM[1] = 0.0
WEIGHTS_BM[2] = torch.tensor([0.2, 0.9, 0.4])


def total_loss_of(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    """The synthetic term counts half."""
    return total_loss(losses, 0.5)


def gradients_and_queues(accelerator: Accelerator, name: str, term: str) -> dict[str, torch.Tensor]:
    # The method
    torch.manual_seed(0)
    parts = accelerator.num_processes if term.startswith("cached") else 1
    settings = {"accumulation": parts, "synthetic": TERMS[term], **NETWORKS}
    config = PretrainConfig(method=name, batch_size=8, queue_size=16, **settings)
    method = build_method(config).double()  # so that the order of sums is no difference to speak of
    for module in method.modules():
        if isinstance(
            module, torch.nn.Dropout | torch.nn.MultiheadAttention
        ):  # each process would drop others
            setattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", 0.0)
    method.before_step(0, 1)
    model = accelerator.prepare(method)

    # This process's part of the batch
    images = [torch.randn(8, 3, 8, 8, dtype=torch.float64) for _ in range(5)]
    count = config.synthetic.candidates
    third = images[2] if count == 1 else torch.stack(images[2:], dim=1)
    local = 8 // accelerator.num_processes
    own = slice(accelerator.process_index * local, (accelerator.process_index + 1) * local)
    weights = None if count == 1 or (WEIGHTS_BM[own] == 1).all() else WEIGHTS_BM[own]
    labels = torch.arange(8) % 3

    # Gradients and queues
    views = [image[own] for image in images[:2]]
    if parts > 1:
        inputs = StepInputs(views, third[own], weights, labels[own])
        with accelerator.no_sync(model):
            backward_over_batch(method, inputs, parts, total_loss_of, nullcontext, ("test",))
    else:
        losses = model(views, third[own], weights, labels[own])
        accelerator.backward(total_loss_of(losses))
    found = {
        name: parameter.grad
        for name, parameter in method.named_parameters()
        if parameter.grad is not None
    }
    return found | {name: buffer for name, buffer in method.named_buffers() if "queue" in name}


def save_steps(folder: Path) -> None:
    """Save them in a file per method, synthetic term and rank."""
    accelerator = Accelerator(cpu=True)
    for name in METHODS:
        for term in TERMS:
            rank = f"{accelerator.num_processes}-{accelerator.process_index}"
            torch.save(
                gradients_and_queues(accelerator, name, term), folder / f"{name}-{term}-{rank}.pt"
            )
    accelerator.end_training()
