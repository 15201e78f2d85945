"""Pseudo-classes by the command line: what is refused before any work, and the bytes of any number of processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from clsp.cli.main import run
from clsp.shards import ShardSet
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from PIL import Image
from places import contents
from processes import run_clsp, run_ranks

TRAINING = (
    "anchors.limit=40",
    "diffusion.channels=[32,32]",
    "diffusion.attention=[false,false]",
    "diffusion.blocks=1",
    "diffusion.steps=4",
    "diffusion.batch_size=6",
    "diffusion.warmup_steps=1",
    "diffusion.sample_steps=0",
    "diffusion.probe_images=0",
    "diffusion.condition=clusters",
    "diffusion.clusters=3",
)
MAKING = (
    "sampler.steps=2",
    "sampler.micro_batch=8",
    "sampler.guidance=2",
    "shards.candidates=2",
    "shards.records=8",
)


def training(model_folder: Path, out: Path, *more: str) -> list[str]:
    """Return the command line that trains a model with pseudo-classes of the features of another one."""
    encoder = f"diffusion.cluster_encoder=unet:{model_folder}"
    settings = [f"--set={setting}" for setting in (*TRAINING, encoder, *more)]
    return ["diffusion", "train", "--recipe=digits", f"--out={out}", *settings]


def making(model: Path | str, out: Path, *more: str) -> list[str]:
    """Return the command line that makes a set of it."""
    settings = [f"--set={setting}" for setting in ("anchors.limit=40", *MAKING, *more)]
    return ["shards", "make", "--recipe=digits", f"--out={out}", f"--diffusion={model}", *settings]


@pytest.fixture(scope="module")
def clustered(model_folder, tmp_path_factory) -> Path:
    """The folder of a model with three pseudo-classes of 40 digits."""
    out = tmp_path_factory.mktemp("clustered") / "diffusion"
    run_clsp(*training(model_folder, out))
    return out


@pytest.fixture(scope="module")
def with_labels(tmp_path_factory) -> Path:
    """A model of others with ten classes: nothing beside it says what they are."""
    folder = tmp_path_factory.mktemp("with labels") / "model"
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        num_class_embeds=10,
    )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    return folder


def determined(root: Path) -> dict[str, bytes]:
    """Return the files of a set that a plan determines."""
    files = contents(root)
    names = [name for name in files if name.endswith((".tar", ".parquet")) or name == "plan.json"]
    return {name: files[name] for name in names}


@pytest.mark.slow
def test_sets_with_clusters_and_guidance_have_the_same_bytes_for_any_number_of_processes(
    clustered, tmp_path
):
    run_clsp(*making(clustered, tmp_path / "1"))
    found = [determined(tmp_path / "1")]
    for processes in (2, 3):
        root = tmp_path / f"{processes}"
        run_ranks(processes, run, making(clustered, root))
        found.append(determined(root))
        made = [json.loads(path.read_text())["made"] for path in root.glob("commits/*/*.json")]
        assert {commit["processes"] for commit in made} == {processes}

    assert len([name for name in found[0] if name.endswith(".tar")]) == 5
    assert found[0] == found[1] == found[2]
    plan = json.loads(found[0]["plan.json"])
    assert plan["diffusion"]["condition"]["kind"] == "clusters"
    assert plan["sampler"]["guidance"] == 2


@pytest.mark.slow
def test_processes_train_with_the_same_clusters_as_one(model_folder, clustered, tmp_path):
    out = tmp_path / "diffusion"
    run_ranks(2, run, training(model_folder, out))
    for name in ("clusters.parquet", "condition.json", "training.json"):
        assert (out / name).read_bytes() == (clustered / name).read_bytes()


@pytest.mark.slow
def test_processes_are_told_the_same_features_as_one(model_folder, tmp_path):
    told = "diffusion.condition=features"
    run_clsp(*training(model_folder, tmp_path / "1", told))
    run_ranks(2, run, training(model_folder, tmp_path / "2", told))
    for name in ("clusters.parquet", "condition.json", "training.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()

    rows = []
    for processes in ("1", "2"):
        unet = UNet2DModel.from_pretrained(tmp_path / processes / "unet")
        rows.append(unet.class_embedding.weight)
    assert torch.equal(*rows)
    assert len(rows[0]) == 41


def test_a_clustered_model_says_what_was_clustered_but_not_where(clustered, model_folder, clsp):
    record = json.loads((clustered / "condition.json").read_text())
    assert (record["kind"], record["classes"], len(record["digest"])) == ("clusters", 3, 64)
    assert str(model_folder.parent).encode() not in (clustered / "clusters.parquet").read_bytes()


def test_extended_and_repaired_after_the_model_moved(clustered, clsp, tmp_path):
    root = tmp_path / "set"
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(clustered, moved)
    assert clsp(*making(clustered, root)).returncode == 0
    found = clsp("shards", "extend", root, "--candidates=4", f"--diffusion={moved}")
    assert found.returncode == 0, found.stderr

    # As if made at once
    assert clsp(*making(moved, tmp_path / "four", "shards.candidates=4")).returncode == 0
    one, other = ShardSet(root), ShardSet(tmp_path / "four")
    for position in range(len(one)):
        for candidate in range(4):
            made = one.candidate_bytes(position, candidate)
            assert made == other.candidate_bytes(position, candidate)

    # Damage
    for name in ("layer-000/shard-000001.tar", "layer-001/shard-000004.tar"):
        content = bytearray((root / name).read_bytes())
        content[3000] ^= 1
        (root / name).write_bytes(content)
    found = clsp("shards", "repair", root, f"--diffusion={moved}")
    assert found.returncode == 0, found.stderr
    assert clsp("shards", "verify", root, "--deep").returncode == 0


def test_a_model_of_others_with_labels_extends_and_repairs_its_sets(with_labels, clsp, tmp_path):
    root = tmp_path / "set"
    labels = ("diffusion.condition=labels", "diffusion.null_class=9")
    nine = clsp(*making(with_labels, root, *labels))
    assert nine.returncode == 2  # the nines are «no class»
    assert "has the label 9" in nine.stderr

    labels = ("diffusion.condition=labels", "sampler.guidance=1")
    assert clsp(*making(with_labels, root, *labels)).returncode == 0
    found = clsp("shards", "extend", root, "--candidates=3", f"--diffusion={with_labels}")
    assert found.returncode == 0, found.stderr
    (root / "layer-001" / "shard-000002.tar").write_bytes(b"")
    found = clsp("shards", "repair", root, f"--diffusion={with_labels}")
    assert found.returncode == 0, found.stderr
    assert "not self-supervised" in clsp("shards", "info", root).stdout


def test_anchors_that_do_not_decode_have_no_class_and_need_none(clsp, tmp_path):
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(24):
        pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    for number in (0, 11, 23):
        (folder / f"{number:02d}.png").write_bytes(b"no image")

    skip = (f"anchors.path={tmp_path / 'images'}", "anchors.on_error=skip", "anchors.size=8")
    plain = tmp_path / "plain"
    unconditional = (*skip, "diffusion.condition=none")
    assert clsp(*training(plain, plain, *unconditional)).returncode == 0
    model = tmp_path / "model"
    found = clsp(*training(plain, model, *skip))
    assert found.returncode == 0, found.stderr
    found = clsp(*making(model, tmp_path / "set", *skip))
    assert found.returncode == 0, found.stderr


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("diffusion.clusters=41", "diffusion.clusters is 41, and there are 40 anchors"),
        ("diffusion.cluster_encoder=unet:MODEL@up9:50", "no block up9, expected one of down0"),
        ("diffusion.cluster_encoder=unet:MODEL@mid:1000", "timesteps 0 … 999"),
        ("diffusion.cluster_encoder=unet:MODEL@chosen", "labels choose in linear-eval"),
        ("diffusion.cluster_encoder=no_such_net", "timm has no model of that name"),
        ("diffusion.cluster_encoder=", "condition = clusters needs cluster_encoder"),
    ],
)
def test_clusters_that_cannot_be_made_are_refused_by_the_check(
    model_folder, clsp, tmp_path, setting, message
):
    command = training(model_folder, tmp_path / "out")
    command.append("--set=" + setting.replace("MODEL", str(model_folder)))
    for line in ([*command, "--check"], command):
        found = clsp(*line)
        assert found.returncode == 2
        assert message in found.stderr.splitlines()[-1]

    # Nothing stands in the way of better settings
    assert clsp(*training(model_folder, tmp_path / "out")).returncode == 0


def test_an_empty_cluster_is_refused(model_folder, clsp, tmp_path):
    folder = tmp_path / "images" / "train"
    folder.mkdir(parents=True)
    for number in range(6):
        Image.new("RGB", (8, 8), (40 * (number % 2), 90, 90)).save(folder / f"{number}.png")

    images = (f"anchors.path={tmp_path / 'images'}", "diffusion.clusters=4")
    found = clsp(*training(model_folder, tmp_path / "out", *images))
    assert found.returncode == 2
    assert "of 4 clusters are empty" in found.stderr.splitlines()[-1]
    assert "diffusion.clusters <= 2" in found.stderr.splitlines()[-1]


@pytest.mark.parametrize("verb", ["make", "check", "plan"])
def test_what_a_model_cannot_do_is_refused_by_make_its_check_and_plan(
    model_folder, clustered, with_labels, clsp, tmp_path, verb
):
    root = tmp_path / "set"
    cases = (
        (model_folder, ("sampler.guidance=2",), "has no classes; set it to 1"),
        (model_folder, ("sampler.guidance=0",), "has no classes; set it to 1"),
        (with_labels, ("diffusion.condition=labels",), "name that class in diffusion.null_class"),
        (with_labels, (), "has 10 classes, expected one without"),
        (
            with_labels,
            ("diffusion.condition=labels", "diffusion.null_class=10"),
            "null_class is 10",
        ),
        (clustered, ("sampler.window=[1,2]",), "none of the 2 timesteps"),
        (clustered, ("anchors.limit=60",), "anchor train_00000040 has no pseudo-class"),
        (clustered, ("diffusion.condition=labels",), "has pseudo-classes"),
    )
    for model, settings, message in cases:
        command = making(model, root, *settings)
        if verb == "plan":
            command = ["shards", "plan", "--seconds=0", *command[2:]]
        if verb == "check":
            command.append("--check")
        found = clsp(*command)
        assert found.returncode == 2
        assert message in found.stderr.splitlines()[-1]
        assert not root.exists()


def test_sets_guided_away_from_different_classes_are_merged_and_the_same_are_not(
    with_labels, clsp, tmp_path
):
    for name, null in (("a", 8), ("b", 9), ("c", 9)):
        labels = ("diffusion.condition=labels", f"diffusion.null_class={null}", "anchors.limit=4")
        assert clsp(*making(with_labels, tmp_path / name, *labels)).returncode == 0

    found = clsp("shards", "merge", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "merged")
    assert found.returncode == 0, found.stderr
    same = clsp("shards", "merge", tmp_path / "b", tmp_path / "c", "--out", tmp_path / "same")
    assert same.returncode == 2
    assert "its candidates are the same images" in same.stderr
