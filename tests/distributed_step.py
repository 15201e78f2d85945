"""Run by test_distributed.py in each process of a group: every method's gradients and queues of one step."""

from pathlib import Path

import torch
from accelerate import Accelerator
from clsp.train import METHODS, PretrainConfig, build_method

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
}
"""Settings of the synthetic term; those with several candidates get weights that are 1 in the second half only."""
WEIGHTS_BM = torch.ones(8, 3)
WEIGHTS_BM[0] = torch.tensor([1.5, 1.5, 0.0])
WEIGHTS_BM[1] = 0.0
WEIGHTS_BM[2] = torch.tensor([0.2, 0.9, 0.4])


def gradients_and_queues(accelerator: Accelerator, name: str, term: str) -> dict[str, torch.Tensor]:
    # The method
    torch.manual_seed(0)
    config = PretrainConfig(
        method=name, batch_size=8, queue_size=16, synthetic=TERMS[term], **NETWORKS
    )
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
    losses = model([image[own] for image in images[:2]], third[own], weights, labels[own])
    accelerator.backward(sum(losses.values()))
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
