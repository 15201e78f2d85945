"""The Slurm scripts, run by bash as Slurm would, with its commands replaced by recorders."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clsp.shards import verify_set
from conftest import REPOSITORY, settings

pytestmark = pytest.mark.slow

SCRIPTS = REPOSITORY / "docs" / "slurm"
VALUES = {
    "anchors.limit": 96,
    "shards.records": 8,
    "shards.candidates": 3,
    "sampler.steps": 6,
    "sampler.micro_batch": 8,
}


@pytest.fixture
def cluster(tmp_path):
    """A function that starts a script with Slurm's environment; `tmp_path/calls` holds what it asked of Slurm."""
    binaries = tmp_path / "bin"
    binaries.mkdir()

    def command(name: str, text: str) -> None:
        (binaries / name).write_text(f"#!/bin/bash\n{text}\n")
        (binaries / name).chmod(0o755)

    command("clsp", f'exec {sys.executable} -m clsp.cli "$@"')
    command("scontrol", f'echo "$*" >> {tmp_path}/calls; [ "$1" = show ] && echo node1; true')
    command("srun", 'shift; for n in 0 1; do SLURM_NODEID=$n "$@" & done; wait')
    command("accelerate", f'echo "$*" >> {tmp_path}/calls')

    def start(script: str, *arguments: object, **environment: object) -> subprocess.Popen[str]:
        path = f"{binaries}{os.pathsep}{os.environ['PATH']}"
        variables = {**os.environ, "PATH": path, "RECIPE": "digits", "OUT": str(tmp_path / "out")}
        variables |= {name: str(value) for name, value in environment.items()}
        line = ["bash", str(SCRIPTS / script), *map(str, arguments), *settings(VALUES)]
        return subprocess.Popen(
            line, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    return start


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines()


def test_an_array_makes_the_set_in_parts_and_a_stopped_task_asks_to_go_on(
    cluster, model_folder, tmp_path
):
    def task(number: int) -> subprocess.Popen[str]:
        variables = {
            "SLURM_ARRAY_TASK_ID": number,
            "SLURM_ARRAY_TASK_COUNT": 2,
            "SLURM_ARRAY_TASK_MAX": 1,
            "SLURM_ARRAY_JOB_ID": 7,
        }
        return cluster("array.sbatch", "--diffusion", model_folder, **variables)

    stopped, root = task(1), tmp_path / "out" / "shards"
    while not list(root.glob("commits/*/*.json")):
        assert stopped.poll() is None
        time.sleep(0.01)
    stopped.send_signal(signal.SIGTERM)
    output, _ = stopped.communicate()
    assert stopped.returncode == 75 and "resumable" in output
    assert calls(tmp_path) == ["requeue 7_1"]
    for number in (0, 1):
        output, _ = (process := task(number)).communicate()
        assert process.returncode == 0, output
    assert verify_set(root, deep=True) == []


def test_an_array_that_does_not_start_at_0_is_refused(cluster):
    variables = {"SLURM_ARRAY_TASK_ID": 1, "SLURM_ARRAY_TASK_COUNT": 2, "SLURM_ARRAY_TASK_MAX": 2}
    output, _ = (process := cluster("array.sbatch", **variables)).communicate()
    assert process.returncode == 2 and "use --array=0-1 or set PARTS" in output


def test_several_nodes_are_launched_with_their_ranks(cluster, model_folder, tmp_path):
    variables = {
        "SLURM_GPUS_ON_NODE": 4,
        "SLURM_NNODES": 2,
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": 9,
    }
    output, _ = (
        process := cluster("nodes.sbatch", "--diffusion", model_folder, **variables)
    ).communicate()
    assert process.returncode == 0, output
    shown, *launches = calls(tmp_path)
    assert shown == "show hostnames node[1-2]"
    for rank, line in enumerate(sorted(launches, key=lambda line: line.split("--machine_rank")[1])):
        assert (
            f"--num_machines 2 --machine_rank {rank} --num_processes 8 --main_process_ip node1"
            in line
        )
        assert (
            f"-m clsp.cli shards make --recipe digits --out {tmp_path}/out/shards --diffusion {model_folder}"
            in line
        )
    assert len(launches) == 2


def test_bad_input_is_found_before_any_launch(cluster, tmp_path):
    variables = {
        "SLURM_GPUS_ON_NODE": 4,
        "SLURM_NNODES": 2,
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_ID": 9,
    }
    output, _ = (
        process := cluster("nodes.sbatch", "--diffusion", tmp_path / "none", **variables)
    ).communicate()
    assert process.returncode == 2 and "does not exist" in output
    assert len(calls(tmp_path)) == 1
