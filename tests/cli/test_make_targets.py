"""The Makefile where something is wrong; its targets one after the other are in test_readme.py and test_demo.py."""

import pytest
from conftest import run_make

pytestmark = pytest.mark.slow


def test_bad_input_stops_make_before_processes_are_launched(tmp_path, shard_set):
    found = run_make(
        "pretrain",
        "GPUS=2",
        f"SHARDS={shard_set}",
        args=["--set=pretrain.batch_size=100"],
        cwd=tmp_path,
    )
    lines = found.stderr.strip().splitlines()
    assert (
        found.returncode == 2 and "batch_size is 100" in lines[0] and len(lines) == 2
    )  # ours and make's own
    assert not (tmp_path / "runs").exists()
