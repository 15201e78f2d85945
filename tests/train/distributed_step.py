"""Run by test_distributed.py under torchrun: gradients of one step, written to a file per rank."""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from clsp.train import PretrainConfig, build_method

method_name, folder = sys.argv[1], Path(sys.argv[2])
accelerator = Accelerator(cpu=True)
kwargs = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1], "norm_layer": "groupnorm1"}
config = PretrainConfig(method=method_name, backbone_kwargs=kwargs, projector_hidden=16, projector_out=8)
torch.manual_seed(0)
method = build_method(config)
model = accelerator.prepare(method)
images = [torch.randn(8, 3, 8, 8) for _ in range(3)]
local = 8 // accelerator.num_processes
own = slice(accelerator.process_index * local, (accelerator.process_index + 1) * local)
losses = model([image[own] for image in images[:2]], images[2][own], None)
accelerator.backward(sum(losses.values()))
gradients = {name: parameter.grad for name, parameter in method.named_parameters()}
torch.save(gradients, folder / f"{accelerator.num_processes}-{accelerator.process_index}.pt")
accelerator.end_training()
