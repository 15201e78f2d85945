"""`shards make` killed at random moments, stopped politely, and run by several processes: always the same bytes."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from clsp.cli.main import run
from clsp.shards import ShardSet, verify_set
from conftest import ON_CPU, launcher
from processes import run_clsp, run_ranks, start_clsp, start_ranks

pytestmark = pytest.mark.slow

SETTINGS = [
    "anchors.limit=96",
    "shards.records=8",
    "shards.candidates=3",
    "sampler.steps=6",
    "sampler.micro_batch=8",
]


def command(model_folder, out):
    settings = [part for setting in SETTINGS for part in ("--set", setting)]
    arguments = [
        "shards",
        "make",
        "--recipe",
        "digits",
        "--out",
        out,
        "--diffusion",
        model_folder,
        *settings,
    ]
    return [str(argument) for argument in arguments]


def content(root):
    files = [
        *root.glob("layer-*/*"),
        *root.glob("*.parquet"),
        root / "plan.json",
        root / "README.md",
    ]
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


@pytest.fixture(scope="module")
def uninterrupted(model_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("uninterrupted") / "set"
    run_clsp(*command(model_folder, root))
    return root


def start_and_signal(model_folder, root, signum, after_shards):
    process = start_clsp(*command(model_folder, root))
    while process.returncode is None and len(list(root.glob("commits/*/*.json"))) < after_shards:
        time.sleep(0.005)
    time.sleep(random.uniform(0, 0.05))
    process.send_signal(signum)
    return process.wait(), process.stderr


def test_killed_at_random_moments_the_set_ends_with_the_same_bytes(
    model_folder, tmp_path, uninterrupted
):
    random.seed(0)
    root = tmp_path / "set"
    for after in (1, 5, 9):
        code, _ = start_and_signal(model_folder, root, signal.SIGKILL, after)
        assert code == -signal.SIGKILL
        committed = set(root.glob("commits/*/*.json"))
        times = {path: path.stat().st_mtime_ns for path in committed}
    run_clsp(*command(model_folder, root))
    assert {
        path: path.stat().st_mtime_ns for path in committed
    } == times  # finished shards were not made again
    assert content(root) == content(uninterrupted)
    assert verify_set(root, deep=True) == [] and not list(root.rglob("*.tmp"))


def test_a_polite_stop_exits_with_75_and_is_resumable(model_folder, tmp_path, uninterrupted):
    root = tmp_path / "set"
    code, errors = start_and_signal(model_folder, root, signal.SIGTERM, 2)
    assert code == 75 and "resumable" in errors and len(errors.strip().splitlines()) == 1
    assert not list(root.rglob("*.tmp"))
    run_clsp(*command(model_folder, root))
    assert content(root) == content(uninterrupted)


def test_four_processes_with_two_threads_each_give_the_bytes_of_one(
    model_folder, tmp_path, uninterrupted
):
    ranks = run_ranks(4, run, command(model_folder, tmp_path / "set"), threads=2)
    assert sum(rank.stdout.count("is sealed, set ID") for rank in ranks) >= 1
    assert content(tmp_path / "set") == content(uninterrupted)
    makers = {
        json.loads(path.read_text())["made"]["processes"]
        for path in (tmp_path / "set").glob("commits/*/*")
    }
    assert makers == {4}


def test_a_process_that_dies_ends_the_job_by_name_and_three_others_finish_it(
    model_folder, tmp_path, uninterrupted
):
    root = tmp_path / "set"
    line = [*launcher(2), "-m", "clsp.cli", *command(model_folder, root)]
    job = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ON_CPU
    )
    while len(list(root.glob("commits/*/*.json"))) < 2:
        assert job.poll() is None
        time.sleep(0.01)
    os.kill(process_of_rank(job.pid, 1), signal.SIGKILL)
    _, errors = job.communicate()
    assert job.returncode == 1 and re.search(r"rank\s*: 1\b", errors) and "SIGKILL" in errors
    run_ranks(3, run, command(model_folder, root))
    assert content(root) == content(uninterrupted) and verify_set(root, deep=True) == []


def process_of_rank(launcher: int, rank: int) -> int:
    """The process ID of a launcher's child."""
    for child in (
        Path(f"/proc/{launcher}/task/{launcher}/children").read_text(encoding="utf-8").split()
    ):
        if f"\0RANK={rank}\0" in Path(f"/proc/{child}/environ").read_text(encoding="utf-8"):
            return int(child)
    raise LookupError(rank)


def test_a_process_that_fails_says_which_it_is(model_folder, tmp_path, uninterrupted):
    (tmp_path / "set" / "layer-000" / "shard-000001.tar").mkdir(
        parents=True
    )  # only the second process meets it
    shutil.copy(uninterrupted / "plan.json", tmp_path / "set")
    first, second = start_ranks(2, run, command(model_folder, tmp_path / "set"))
    assert second.wait() == 2 and "clsp: process 1 of 2: " in second.stderr
    first.wait()


def test_running_it_again_does_nothing(clsp, model_folder, uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    found = clsp(*command(model_folder, uninterrupted))
    assert found.returncode == 0 and ShardSet(uninterrupted).set_id in found.stdout
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before
