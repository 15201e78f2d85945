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


def gradients_and_queues(accelerator: Accelerator, name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    method = build_method(PretrainConfig(method=name, batch_size=8, queue_size=16, **NETWORKS))
    for module in method.modules():
        if isinstance(
            module, torch.nn.Dropout | torch.nn.MultiheadAttention
        ):  # each process would drop others
            setattr(module, "p" if isinstance(module, torch.nn.Dropout) else "dropout", 0.0)
    method.before_step(0, 1)
    model = accelerator.prepare(method)
    images = [torch.randn(8, 3, 8, 8) for _ in range(3)]
    local = 8 // accelerator.num_processes
    own = slice(accelerator.process_index * local, (accelerator.process_index + 1) * local)
    labels = torch.arange(8) % 3
    losses = model([image[own] for image in images[:2]], images[2][own], None, labels[own])
    accelerator.backward(sum(losses.values()))
    found = {
        name: parameter.grad
        for name, parameter in method.named_parameters()
        if parameter.grad is not None
    }
    return found | {name: buffer for name, buffer in method.named_buffers() if "queue" in name}


def save_steps(folder: Path) -> None:
    """Save them in a file per method and rank."""
    accelerator = Accelerator(cpu=True)
    for name in METHODS:
        rank = f"{name}-{accelerator.num_processes}-{accelerator.process_index}"
        torch.save(gradients_and_queues(accelerator, name), folder / f"{rank}.pt")
    accelerator.end_training()
