"""`make shards && make pretrain && make linear-eval`: the first with two processes; test_readme.py has others."""

import json

from conftest import SMALL_NETWORKS, run_make, settings


def test_shards_pretrain_and_linear_eval_in_a_row(tmp_path):
    args = settings({**SMALL_NETWORKS, "anchors.limit": 64, "shards.records": 16, "shards.candidates": 2})
    for target, gpus in (("shards", 2), ("pretrain", 1), ("linear-eval", 1)):
        found = run_make(target, f"GPUS={gpus}", args=args, cwd=tmp_path)
        assert found.returncode == 0, found.stdout + found.stderr
    run = tmp_path / "runs" / "digits" / "pretrain" / "simclr+shards-s0"
    assert json.loads((run / "linear.json").read_text())["result"]["protocol"] == "clsp"
    made = [json.loads(path.read_text())["made"] for path in (tmp_path / "runs/digits/shards/commits").rglob("*.json")]
    assert {facts["processes"] for facts in made} == {2}


def test_bad_input_stops_make_before_processes_are_launched(tmp_path, shard_set):
    found = run_make("pretrain", "GPUS=2", f"SHARDS={shard_set}", args=["--set=pretrain.batch_size=100"], cwd=tmp_path)
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 2 and "batch_size is 100" in lines[0] and len(lines) == 2  # ours and make's own
    assert not (tmp_path / "runs").exists()
