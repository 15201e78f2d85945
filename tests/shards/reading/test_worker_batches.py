"""Errors of workers arrive as themselves, and no worker outlives the block or the main process."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
import traceback

import pytest
import reading_programs
from clsp.core import InputError, WorkError
from clsp.shards.reading.worker_batches import worker_batches
from processes import Running

pytestmark = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create", "ignore:This process .* is multi-threaded"
)


class TwoArgumentsError(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


def read(item):
    """Return the item's square; the words among them are what goes wrong."""
    match item:
        case "input":
            raise InputError("anchor 7 does not decode")
        case "file":
            raise PermissionError(13, "Permission denied", "/data/x.png")
        case "asks for more":
            raise TwoArgumentsError("this", "that")
        case "holds a lock":
            raise WorkError("a lock", multiprocessing.Lock())
        case "stuck":
            time.sleep(3600)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    return item**2


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_come_in_order_and_an_error_in_its_place(workers):
    found = []
    with (
        pytest.raises(InputError) as raised,
        worker_batches(read, [1, 2, 3, "input", 4], workers) as batches,
    ):
        found.extend(iter(lambda: next(batches), None))
    assert found == [1, 4, 9] and str(raised.value) == "anchor 7 does not decode"
    assert not multiprocessing.active_children()


def test_an_error_keeps_what_it_knows_and_says_where_the_worker_was():
    with pytest.raises(PermissionError) as raised, worker_batches(read, ["file"], 1) as batches:
        next(batches)
    assert (raised.value.filename, raised.value.strerror) == ("/data/x.png", "Permission denied")
    shown = "".join(traceback.format_exception(raised.value))
    assert "In a worker: Traceback" in shown and 'raise PermissionError(13, "P' in shown


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("item", "message"),
    [
        ("asks for more", "TwoArgumentsError: this and that"),
        ("holds a lock", "WorkError: .*a lock"),
    ],
)
def test_an_error_that_cannot_be_sent_arrives_all_the_same(item, message):
    with (
        pytest.raises(RuntimeError, match=message),
        worker_batches(read, [item], 1) as batches,
    ):
        next(batches)


@pytest.mark.timeout(60)
def test_a_worker_that_was_killed_is_said():
    with (
        pytest.raises(WorkError, match=r"was killed \(exit code -9\).*fewer workers"),
        worker_batches(read, [1, "killed", 2, 3], 2) as batches,
    ):
        list(batches)
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_stuck_worker_ends_with_the_block():
    with pytest.raises(KeyError), worker_batches(read, [1, "stuck", 2, "stuck"], 2) as batches:
        next(batches)
        time.sleep(1)  # until the other worker is stuck
        raise KeyError
    assert not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [reading_programs.fail_inside, reading_programs.fail_in_a_loop_that_nothing_closes],
)
def test_a_program_that_fails_while_workers_run_ends(program):
    running = Running(program)
    assert running.wait(60) == 1 and "KeyError" in running.stderr
    assert running.pids == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "program", ["fail_in_a_loop_that_nothing_closes", "fail_where_killed_workers_die_at_once"]
)
def test_a_script_that_fails_in_a_loop_ends(program):
    command = [sys.executable, reading_programs.__file__, program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "KeyError" in done.stderr


@pytest.mark.slow
def test_workers_end_with_a_main_process_that_is_killed():
    running = Running(reading_programs.be_killed)
    assert running.wait(60) == -signal.SIGKILL
    assert len(running.pids) == 3
    for _ in range(600):  # torch's watchdog looks every five seconds
        if not running.pids:
            break
        time.sleep(0.05)
    assert running.pids == []
