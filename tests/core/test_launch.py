"""What the environment says of a launch is understood or refused; nobody waits for ever."""

import os
import signal
import socket
import time

import launch_programs
import pytest
import torch
from clsp.core import LaunchError, launched_rank, read_launch
from clsp.core.launch import GROUP, MPI, USE_CPU
from conftest import ON_CPU, SMALL_NETWORKS, settings
from processes import Running

VARIABLES = [*GROUP, *sum(MPI, ()), "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", USE_CPU]
PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29777"}
ALL = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", **PLACE}
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4", USE_CPU: "true"}


@pytest.fixture
def set_variables(monkeypatch):
    """A function that makes the environment have these variables of launchers and no others."""

    def set_them(values):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_them


@pytest.mark.parametrize(
    "values",
    [
        {},
        PLACE,
        {"RANK": "0"},
        {"WORLD_SIZE": "1", "RANK": "0"},
        {"LOCAL_RANK": "-1"},
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "4"},  # accelerate reads them on CPUs
        {"PMI_RANK": "0", "PMI_SIZE": "1", USE_CPU: "true"},
    ],
)
def test_a_process_alone(set_variables, values):
    set_variables(values)
    assert read_launch() is None and launched_rank() == 0


@pytest.mark.parametrize("values", [ALL, {**OPEN_MPI, **PLACE}, {**OPEN_MPI, **ALL}])
def test_one_of_several(set_variables, values):
    set_variables(values)
    launch = read_launch()
    assert (launch.rank, launch.world_size) == (1, 4) and launched_rank() == 1


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"RANK": "1"}, ["RANK=1", "WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT missing"]),
        ({"RANK": "1", "WORLD_SIZE": "4"}, ["LOCAL_RANK", "unset RANK WORLD_SIZE", "torchrun"]),
        ({"LOCAL_RANK": "0"}, ["LOCAL_RANK=0", "RANK WORLD_SIZE MASTER_ADDR MASTER_PORT missing"]),
        ({**ALL, "MASTER_ADDR": ""}, ["MASTER_ADDR missing", "accelerate launch"]),
        ({"RANK": "abc"}, ["RANK=abc", "no number"]),
        ({**ALL, "WORLD_SIZE": "4.0"}, ["WORLD_SIZE=4.0", "no number"]),
        ({**ALL, "RANK": "4"}, ["RANK=4 WORLD_SIZE=4", "RANK must be below WORLD_SIZE"]),
        (OPEN_MPI, ["OMPI_COMM_WORLD_SIZE=4", "MASTER_ADDR missing"]),
    ],
)
def test_what_is_left_over_is_refused(set_variables, values, parts):
    set_variables(values)
    with pytest.raises(LaunchError) as raised:
        read_launch()
    assert all(part in str(raised.value) for part in parts), raised.value
    assert launched_rank() == 0  # so that this process says it


COMMANDS = [
    ["diffusion", "train", "--recipe", "digits", "--out", "OUT/model"],
    ["shards", "make", "--recipe", "digits", "--out", "OUT/set"],
    ["shards", "extend", "OUT", "--candidates", "8"],
    ["shards", "repair", "OUT"],
    ["pretrain", "--recipe", "digits", "--shards", "OUT/set", "--out", "OUT/run"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_that_joins_a_launch_says_it_in_one_line(
    clsp, set_variables, tmp_path, command
):
    set_variables({"RANK": "1", "WORLD_SIZE": "4"})
    found = clsp(*[part.replace("OUT", str(tmp_path)) for part in command])
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 2 and len(lines) == 1 and "RANK=1 WORLD_SIZE=4" in lines[0]
    assert list(tmp_path.iterdir()) == []


def test_other_commands_speak_all_the_same(clsp, set_variables, shard_set):
    set_variables({"RANK": "abc", "WORLD_SIZE": "4"})
    found = clsp("shards", "info", shard_set)
    assert found.returncode == 0 and "digits" in found.stdout


def test_bad_input_is_said_by_a_process_that_no_launcher_started(clsp, set_variables, tmp_path):
    set_variables(ALL)
    found = clsp("pretrain", "--recipe", "digits", "--shards", tmp_path, "--out", tmp_path / "run")
    assert found.returncode == 2 and len(found.stderr.strip().splitlines()) == 1


def ranks(world_size: int, chosen: range, *arguments, **changes) -> list[Running]:
    """Start some of the processes of a launch; the i-th gets the i-th of each of the arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for number, rank in enumerate(chosen):
        place = {"WORLD_SIZE": str(world_size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        environment = {**ON_CPU, **place, **own, **changes}
        given = [argument[number] for argument in arguments]
        started.append(Running(launch_programs.join_others, *given, environment=environment))
    return started


@pytest.mark.slow
@pytest.mark.parametrize("present", [range(0, 1), range(1, 2), range(0, 3)])
def test_processes_that_wait_in_vain_say_so_and_end(present):
    count = len(present)
    started = ranks(4, present, [0.0] * count, [4.0] * count)
    for rank, one in zip(present, started, strict=True):
        assert one.wait(60) == 2, one.stderr
        assert f"RANK={rank} WORLD_SIZE=4" in one.stdout
        assert "the other processes were not found at 127.0.0.1" in one.stdout
        assert "unset RANK WORLD_SIZE LOCAL_RANK" in one.stdout
        assert f"process {rank} of 4 waits for the others at 127.0.0.1" in one.stderr


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_hears_a_signal(rank):
    (waiting,) = ranks(2, range(rank, rank + 1))
    while "waits for the others" not in waiting.stderr:
        assert waiting.returncode is None
        time.sleep(0.05)
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(30) == -signal.SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("late", [[0.0, 6.0], [6.0, 0.0]])
@pytest.mark.parametrize("switch", ["true", "false"])
def test_processes_that_start_late_are_waited_for(late, switch):
    """Also where nobody told accelerate that there is no GPU."""
    if switch == "false" and torch.accelerator.is_available():
        pytest.skip("a device that two processes cannot share")
    started = ranks(2, range(2), late, ACCELERATE_USE_CPU=switch)
    for rank, one in enumerate(started):
        assert one.wait(90) == 0, one.stderr
        assert f"{rank} of 2" in one.stdout


@pytest.mark.slow
def test_a_command_that_waits_stops_on_request(shard_set, tmp_path):
    environment = {**ON_CPU, **ALL, "MASTER_PORT": "1"}
    small = settings(SMALL_NETWORKS)
    command = ["pretrain", "--recipe", "digits", *small, "--shards", str(shard_set), "--out"]
    waiting = Running(
        launch_programs.run_and_say, [*command, str(tmp_path / "run")], environment=environment
    )
    while "waits for the others" not in waiting.stderr:
        assert waiting.returncode is None, waiting.stderr
        time.sleep(0.05)
    os.kill(waiting.pid, signal.SIGTERM)
    assert waiting.wait(60) == 75 and "resumable" in waiting.stderr
