"""Bad input ends with exit code 2 and one line that says what to do; nothing existing is lost."""

import io
import json
import shutil

import datasets
import numpy as np
import pytest
from clsp.train import PretrainConfig, build_backbone
from clsp.train.backbone import save_backbone
from conftest import SMALL_METHOD, settings
from PIL import Image


def assert_one_line(found, *parts: str) -> None:
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 2, found.stderr
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines


@pytest.fixture
def make(clsp, model_folder, tmp_path):
    def run(*arguments, recipe="digits", out=None):
        fixed = (
            "--recipe",
            recipe,
            "--diffusion",
            model_folder,
            "--set",
            "sampler.steps=1",
            "--set",
            "anchors.limit=8",
        )
        return clsp("shards", "make", *fixed, "--out", out or tmp_path / "set", *arguments)

    return run


@pytest.mark.parametrize(
    ("setting", "parts"),
    [
        ("sampler.stepz=2", ["sampler.stepz", "sampler.steps"]),
        ("shards.candidates=0", ["shards.candidates = 0"]),
        ("sampler.weight=1.01", ["sampler.weight = 1.01"]),
        ("anchors.path=./no/such.parquet", ["./no/such.parquet does not exist"]),
        ("anchors.split=valid", ["splits train and test", "valid"]),
        ("anchors.size=16", ["8 pixels", "16", "anchors.size"]),
    ],
)
def test_bad_settings(make, tmp_path, setting, parts):
    assert_one_line(make("--set", setting), *parts)
    assert not (tmp_path / "set").exists()


def test_bad_part_and_missing_model(make, clsp, tmp_path):
    assert_one_line(make("--part", "2/2"), "--part 2/2", "i/n")
    assert_one_line(
        clsp("shards", "make", "--recipe=digits", "--out", tmp_path / "x" / "set"),
        "clsp diffusion train",
    )
    assert_one_line(make("--diffusion", tmp_path / "nowhere"), "does not exist")


def test_a_set_of_another_plan_or_another_thing(make, tmp_path, shard_set):
    shutil.copytree(shard_set, tmp_path / "other")
    before = {path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()}
    assert_one_line(make(out=tmp_path / "other"), "another plan", "sampler.steps: 2 there, 1 here")
    assert {
        path: path.read_bytes() for path in (tmp_path / "other").rglob("*") if path.is_file()
    } == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert_one_line(make(out=tmp_path / "mine"), "is no shard set")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_an_image_that_does_not_decode(make, tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)).save(
        buffer, "PNG"
    )
    contents = [buffer.getvalue(), buffer.getvalue()[:100]]
    cells = {"image": [{"bytes": content, "path": None} for content in contents]}
    datasets.Dataset.from_dict(cells).to_parquet(tmp_path / "x.parquet")
    assert_one_line(
        make("--set", f"anchors.path={tmp_path / 'x.parquet'}"), "train_00000001", "does not decode"
    )


def test_a_set_of_another_schema_version(clsp, shard_set, tmp_path):
    shutil.copytree(shard_set, tmp_path / "set")
    for name in ("manifest.json", "plan.json"):
        path = tmp_path / "set" / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": "2.0"}))
    for command in (["shards", "verify"], ["shards", "info"], ["shards", "status"]):
        assert_one_line(clsp(*command, tmp_path / "set"), "schema version 2.0", "reads 1.x")
    pretrain = (
        "pretrain",
        "--recipe",
        "digits",
        "--shards",
        tmp_path / "set",
        "--out",
        tmp_path / "run",
    )
    assert_one_line(clsp(*pretrain), "schema version 2.0")


def test_evaluating_what_is_no_checkpoint(clsp, tmp_path):
    for task in ("linear-eval", "knn"):
        found = clsp(
            task, "--recipe", "digits", "--checkpoint", tmp_path, "--out", tmp_path / "out"
        )
        assert_one_line(found, "holds no checkpoint")
    assert_one_line(clsp("compare", tmp_path, "--out", tmp_path), "holds no results")
    assert_one_line(clsp("report", tmp_path, "--out", tmp_path / "x.html"), "no results.json")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A folder of a small backbone."""
    folder = tmp_path_factory.mktemp("encoder")
    config = PretrainConfig(backbone_kwargs=SMALL_METHOD["backbone_kwargs"])
    save_backbone(build_backbone(config), config, 8, folder)
    return folder


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        ({"linear_eval.test_path": "./none"}, ["linear_eval.test_path: ./none does not exist"]),
        ({"linear_eval.test_split": "valid"}, ["linear_eval.test_split: digits has", "'valid'"]),
        ({"linear_eval.train_split": "all"}, ["linear_eval.train_split: digits has", "'all'"]),
        ({"anchors.path": "./none"}, ["anchors.path: ./none does not exist"]),
    ],
)
def test_an_evaluation_names_the_key_at_fault(clsp, encoder, tmp_path, values, parts):
    common = ("knn", "--recipe", "digits", "--checkpoint", encoder, "--out", tmp_path / "out")
    assert_one_line(clsp(*common, *settings(values)), *parts)
    assert not (tmp_path / "out").exists()


def test_more_neighbours_than_training_images_are_said(clsp, encoder, tmp_path):
    values = {"linear_eval.train_limit": 60, "linear_eval.test_limit": 20}
    common = ("knn", "--recipe", "digits", "--checkpoint", encoder, "--out", tmp_path / "out")
    found = clsp(*common, *settings(values))
    assert found.returncode == 0, found.stderr
    said = [line for line in found.stdout.splitlines() if line.startswith("note: knn.k")]
    assert len(said) == 1 and "200 neighbours, there are 60 training images" in said[0]


def test_a_transfer_names_the_key_at_fault(clsp, encoder, tmp_path):
    common = ("transfer", "--recipe", "digits", "--checkpoint", encoder, "--out", tmp_path / "out")
    for values, part in (
        ({"transfer.sets.mine.path": "./none"}, "transfer.sets.mine.path: ./none does not exist"),
        (
            {"transfer.sets.mine.path": "digits", "transfer.sets.mine.train": "all"},
            "transfer.sets.mine.train: digits has the splits",
        ),
    ):
        found = clsp(*common, *settings({**values, "transfer.only": "[mine]"}))
        assert_one_line(found, part)


def test_the_root_of_the_file_system_is_no_output(clsp, make):
    assert_one_line(make(out="/"), "the root of the file system")
    assert_one_line(clsp("shards", "status", "/"), "the root of the file system")
