"""The commands on whole sets, end to end: subset, merge, push, pull, import, export, status."""

import numpy as np
from clsp.shards import ShardSet, verify_set


def test_subset_push_pull_and_export(clsp, shard_set, tmp_path):
    found = clsp("shards", "subset", shard_set, "--fraction", "0.5", "--out", tmp_path / "half")
    assert found.returncode == 0 and "20 of 40 anchors" in found.stdout
    set_id = ShardSet(tmp_path / "half").set_id
    assert clsp("shards", "push", tmp_path / "half", tmp_path / "there").returncode == 0
    found = clsp("shards", "pull", tmp_path / "there", tmp_path / "back", "--expect", set_id)
    assert found.returncode == 0 and set_id in found.stdout, found.stderr
    assert verify_set(tmp_path / "back", deep=True, expect=set_id) == []
    assert (
        clsp(
            "shards", "pull", tmp_path / "there", tmp_path / "other", "--expect", "0" * 64
        ).returncode
        == 2
    )
    assert clsp("shards", "export", tmp_path / "back", "--npy", tmp_path / "x.npy").returncode == 0
    half = ShardSet(tmp_path / "half")
    assert np.array_equal(np.load(tmp_path / "x.npy")[3, 1], half.candidate(3, 1))


def test_import_status_and_info(clsp, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (30, 2, 8, 8, 3), np.uint8)
    np.save(tmp_path / "authors.npy", images)
    arguments = ("--recipe=digits", "--set=anchors.limit=30", "--set=shards.records=16")
    found = clsp(
        "shards", "import-npy", tmp_path / "authors.npy", *arguments, "--out", tmp_path / "set"
    )
    assert found.returncode == 0, found.stderr
    assert np.array_equal(ShardSet(tmp_path / "set").candidate(29, 1), images[29, 1])
    found = clsp("shards", "status", tmp_path / "set")
    assert "layer-000 sealed, candidates 0-1, 2/2 shards, 30/30 anchors" in found.stdout
    found = clsp("shards", "info", tmp_path / "set")
    assert "imported from authors.npy" in found.stdout
    found = clsp("shards", "extend", tmp_path / "set", "--candidates", "4", "--diffusion", tmp_path)
    assert found.returncode == 2 and "not made by clsp" in found.stderr


def test_wrong_usage_is_one_line(clsp, shard_set, tmp_path):
    cases = [
        (
            ("subset", shard_set, "--out", tmp_path / "x"),
            "neither of --fraction F and --range A:B given",
        ),
        (("subset", shard_set, "--range", "5:5", "--out", tmp_path / "x"), "expected A:B"),
        (("subset", shard_set, "--range", "90:95", "--out", tmp_path / "x"), "is empty"),
        (("merge", shard_set, shard_set, "--out", tmp_path / "x"), "use clsp shards extend"),
        (("push", shard_set, "nowhere://x/y"), "nowhere"),
        (("pull", tmp_path / "nothing", tmp_path / "x"), "does not exist"),
        (("export", shard_set), "--npy"),
        (("repair", shard_set, "--from", "x", "--diffusion", "y"), "give one of them"),
    ]
    for arguments, part in cases:
        found = clsp("shards", *arguments)
        assert found.returncode == 2 and part in found.stderr, (arguments, found.stderr)
        assert len(found.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x").exists()
