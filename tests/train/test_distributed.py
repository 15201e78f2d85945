import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from clsp.train import METHODS

STEP = Path(__file__).with_name("distributed_step.py")


@pytest.mark.parametrize("method", sorted(METHODS))
def test_gradients_of_two_processes_equal_those_of_one_on_the_joint_batch(method, tmp_path):
    for processes in (1, 2):
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
            STEP,
            method,
            tmp_path,
        ]
        subprocess.run(command, check=True, env={**os.environ, "ACCELERATE_USE_CPU": "true"}, capture_output=True)
    one, *two = (torch.load(tmp_path / name) for name in ("1-0.pt", "2-0.pt", "2-1.pt"))
    assert {"mocov2plus": 2, "nnclr": 1, "all4one": 1}.get(method, 0) == sum(
        name.endswith("embeddings_QD") for name in one
    )
    assert "backbone.conv1.weight" in one
    for name, expected in one.items():
        for found in two:
            torch.testing.assert_close(
                found[name], expected, atol=1e-6, rtol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
            )
