import re

import pytest


@pytest.fixture
def options(model_folder):
    settings = (
        "anchors.limit=40",
        "sampler.steps=2",
        "sampler.micro_batch=8",
        "shards.candidates=2",
        "shards.records=16",
    )
    return [
        "--recipe",
        "digits",
        "--diffusion",
        model_folder,
        *(f"--set={setting}" for setting in settings),
    ]


def test_plan_says_what_a_set_will_cost_and_writes_nothing(clsp, options, tmp_path):
    command = ("shards", "plan", *options, "--seconds=0", "--out", tmp_path / "set")
    found = clsp(*command)
    assert found.returncode == 0 and not (tmp_path / "set").exists()
    rows = dict(line.split(maxsplit=1) for line in found.stdout.splitlines())
    assert rows["anchors"].startswith("40 of digits") and rows["candidates"].startswith(
        "80 (2 each)"
    )
    assert (
        rows["shards"] == "3 of 16 anchors"
        and float(re.search(r"about (\S+) hours", rows["time"])[1]) > 0
    )
    on_two = dict(
        line.split(maxsplit=1) for line in clsp(*command, "--gpus", "2").stdout.splitlines()
    )["time"]
    hours, device_hours = (
        float(number) for number in re.findall(r"([\d.e-]+) (?:device )?hours", on_two)
    )
    assert "on 2 x CPU" in on_two and hours == pytest.approx(
        device_hours * 2 / 3, rel=0.02
    )  # three shards, two rounds
    assert clsp("shards", "make", *options, "--out", tmp_path / "set").returncode == 0
    actual = sum(path.stat().st_size for path in tmp_path.glob("set/layer-000/*.tar")) / 1e9
    assert float(re.search(r"about (\S+) GB", rows["bytes"])[1]) == pytest.approx(actual, rel=0.35)


def test_parts_of_a_job_array_and_status_between_them(clsp, options, tmp_path):
    root = tmp_path / "set"
    first = clsp("shards", "make", *options, "--out", root, "--part", "0/2")
    assert first.returncode == 0 and "sealed" not in first.stdout
    assert (
        "unfinished, candidates 0-1, 2/3 shards, 24/40 anchors"
        in clsp("shards", "status", root).stdout
    )
    assert "candidates/s per process" in clsp("shards", "status", root).stdout
    unfinished = clsp("shards", "verify", root)
    assert unfinished.returncode == 2 and "is not finished" in unfinished.stderr
    assert "is sealed" in clsp("shards", "make", *options, "--out", root, "--part", "1/2").stdout
    assert (
        "sealed, candidates 0-1, 3/3 shards, 40/40 anchors" in clsp("shards", "status", root).stdout
    )


def test_verify_exits_with_1_and_names_the_file(clsp, options, tmp_path):
    root = tmp_path / "set"
    clsp("shards", "make", *options, "--out", root)
    assert clsp("shards", "verify", root, "--deep").returncode == 0
    assert clsp("shards", "verify", root, "--expect", "0" * 64).returncode == 1
    shard = root / "layer-000" / "shard-000001.tar"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    found = clsp("shards", "verify", root, "--deep")
    assert found.returncode == 1 and "layer-000/shard-000001.tar" in found.stdout
    assert (
        clsp("shards", "make", *options, "--out", root).returncode == 0
    )  # the size fits: only --deep can tell


def test_a_set_without_anchors_is_previewed_with_its_recipe(clsp, options, tmp_path):
    root, recipe = tmp_path / "set", tmp_path / "mine.toml"
    clsp("shards", "make", *options, "--set=shards.include_anchors=false", "--out", root)
    alone = clsp("shards", "preview", root, "--out", tmp_path / "sheet.png")
    assert alone.returncode == 2 and "--recipe" in alone.stderr
    recipe.write_text('[anchors]\npath = "digits"\nlimit = 40\n')
    assert (
        clsp(
            "shards", "preview", root, "--out", tmp_path / "sheet.png", "--recipe", recipe
        ).returncode
        == 0
    )
    assert (tmp_path / "sheet.png").stat().st_size > 1000


def test_a_recipe_with_a_model_trains_none(clsp, tmp_path):
    found = clsp("diffusion", "train", "--recipe", "cifar10", "--out", tmp_path / "diffusion")
    assert (
        found.returncode == 0
        and "nothing to train" in found.stdout
        and not (tmp_path / "diffusion").exists()
    )
