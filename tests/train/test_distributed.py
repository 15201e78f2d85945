import json
import shutil
import signal
import subprocess
import time

import pytest
import safetensors.torch
import torch
from clsp.cli.main import run
from clsp.train import METHODS
from conftest import ON_CPU, SMALL_NETWORKS, launcher, settings
from distributed_step import TERMS, save_steps
from processes import run_ranks

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """One step of every method with every synthetic term, by one process and by two."""
    folder = tmp_path_factory.mktemp("steps")
    for processes in (1, 2):
        run_ranks(processes, save_steps, folder)
    return folder


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_gradients_of_two_processes_equal_those_of_one_on_the_joint_batch(method, term, steps):
    ranks = ("1-0", "2-0", "2-1")
    one, *two = (torch.load(steps / f"{method}-{term}-{rank}.pt") for rank in ranks)
    assert {"mocov2plus": 2, "nnclr": 1, "all4one": 1}.get(method, 0) == sum(
        name.endswith("embeddings_QD") for name in one
    )
    assert "backbone.conv1.weight" in one
    for name, expected in one.items():
        for found in two:
            torch.testing.assert_close(
                found[name],
                expected,
                atol=1e-11,
                rtol=1e-9,
                msg=lambda text, name=name: f"{name}: {text}",
            )


def test_two_processes_stop_behind_the_same_step_and_go_on_to_the_same_weights(
    clsp, shard_set, tmp_path
):
    """SIGTERM comes to both and to their workers at slightly different times; one process alone can go on, too."""
    values = {
        **SMALL_NETWORKS,
        "pretrain.epochs": 40,
        "pretrain.batch_norm": "joint",
        "pretrain.workers": 1,
    }
    arguments = [
        "pretrain",
        "--recipe",
        "digits",
        "--shards",
        str(shard_set),
        *settings(values),
        "--out",
    ]
    whole, parts, alone = tmp_path / "whole", tmp_path / "parts", tmp_path / "alone"
    run_ranks(2, run, [*arguments, str(whole)])
    command = [*launcher(2), "-m", "clsp.cli", *arguments, str(parts)]
    stopped = subprocess.Popen(command, env=ON_CPU, stderr=subprocess.PIPE, text=True)
    while not list(parts.glob("checkpoints/*")):
        assert stopped.poll() is None
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    _, errors = stopped.communicate()
    assert not (parts / "backbone").exists() and "resumable" in errors
    shutil.copytree(parts, alone)
    run_ranks(2, run, [*arguments, str(parts)])
    one, two = (
        safetensors.torch.load_file(out / "backbone" / "model.safetensors")
        for out in (whole, parts)
    )
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert clsp(*arguments, alone).returncode == 0
    steps = [
        [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
        for out in (whole, alone)
    ]
    assert steps[0] == steps[1] and len(steps[0]) == 40
