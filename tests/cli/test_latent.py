"""Latent models by the command line: from images to a set, the bytes of any number of processes, what is refused."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from clsp.cli.main import run
from clsp.generate import UNetFeatures, default_block, load_diffusion
from clsp.shards import ShardSet, verify_set
from latent_models import SIZE, in_model_range, save_autoencoder, save_ldm, save_unet
from places import contents
from processes import run_clsp, run_ranks, start_clsp

ANCHORS = ("anchors.limit=40", f"anchors.size={SIZE}")
TRAINING = (
    *ANCHORS,
    "diffusion.channels=[32,32]",
    "diffusion.attention=[false,false]",
    "diffusion.blocks=1",
    "diffusion.steps=4",
    "diffusion.batch_size=6",
    "diffusion.warmup_steps=1",
    "diffusion.flip=true",
)
MAKING = (
    *ANCHORS,
    "sampler.steps=2",
    "sampler.micro_batch=8",
    "sampler.decode_batch=3",
    "shards.candidates=2",
    "shards.records=8",
)


def training(autoencoder: Path | str, out: Path, *more: str) -> list[str]:
    latent = f"diffusion.latent={autoencoder}"
    settings = [f"--set={setting}" for setting in (*TRAINING, latent, *more)]
    return ["diffusion", "train", "--recipe=digits", f"--out={out}", *settings]


def making(model: Path | str, out: Path, *more: str) -> list[str]:
    settings = [f"--set={setting}" for setting in (*MAKING, *more)]
    return ["shards", "make", "--recipe=digits", f"--out={out}", f"--diffusion={model}", *settings]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder") / "ae")


@pytest.fixture(scope="module")
def trained(autoencoder, tmp_path_factory) -> Path:
    """The folder of a latent model."""
    out = tmp_path_factory.mktemp("trained") / "diffusion"
    run_clsp(*training(autoencoder, out))
    return out


@pytest.fixture(scope="module")
def made(trained, tmp_path_factory) -> Path:
    """A set of five shards; tests must not write to it."""
    root = tmp_path_factory.mktemp("made") / "set"
    run_clsp(*making(trained, root))
    return root


def determined(root: Path) -> dict[str, bytes]:
    """Return the files of a set that a plan determines."""
    files = contents(root)
    names = [name for name in files if name.endswith((".tar", ".parquet")) or name == "plan.json"]
    return {name: files[name] for name in names}


def refusal(found, message: str) -> None:
    """Check that a command refused its input in one line."""
    assert found.returncode == 2, found.stderr
    lines = found.stderr.splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]


def test_a_set_of_a_latent_model_is_one_like_any_other(made, trained, autoencoder, clsp):
    assert verify_set(made, deep=True) == []
    assert ShardSet(made).plan.source.size == SIZE
    plan = json.loads((made / "plan.json").read_text())
    record = json.loads((trained / "latent.json").read_text())
    latent = plan["diffusion"]["latent"]
    assert (latent["origin"], latent["digest"]) == ("ae", record["digest"])
    assert (latent["scaling"], latent["ranges"]) == (record["scaling"], record["ranges"])
    assert "in latents of ae" in clsp("shards", "info", made).stdout
    assert "5/5 shards, 40/40 anchors" in clsp("shards", "status", made).stdout

    estimate = clsp("shards", "plan", *making(trained, made)[2:3], *making(trained, made)[4:])
    assert estimate.returncode == 0, estimate.stderr
    assert "40 of digits, 16x16" in estimate.stdout


def test_plans_of_pixel_models_say_nothing_of_latents(shard_set):
    plan = json.loads((shard_set / "plan.json").read_text())
    assert set(plan["diffusion"]) == {"origin", "digest"}
    assert "decode_batch" not in plan["sampler"]


@pytest.mark.slow
def test_sets_have_the_same_bytes_for_any_number_of_processes_and_parts(made, trained, tmp_path):
    expected = determined(made)
    assert len([name for name in expected if name.endswith(".tar")]) == 5
    for processes in (2, 3):
        root = tmp_path / f"{processes}"
        run_ranks(processes, run, making(trained, root))
        assert determined(root) == expected
        commits = [json.loads(path.read_text())["made"] for path in root.glob("commits/*/*.json")]
        assert {commit["processes"] for commit in commits} == {processes}

    for part in range(3):
        run_clsp(*making(trained, tmp_path / "parts"), f"--part={part}/3")
    assert determined(tmp_path / "parts") == expected


@pytest.mark.slow
def test_latents_are_the_same_for_any_number_of_processes(autoencoder, trained, tmp_path):
    for processes in (2, 3):
        out = tmp_path / f"{processes}"
        run_ranks(processes, run, training(autoencoder, out))
        assert contents(out / "latents") == contents(trained / "latents")
        assert (out / "latent.json").read_bytes() == (trained / "latent.json").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_encoding_goes_on_where_it_was_stopped(autoencoder, tmp_path, signum):
    command = training(autoencoder, tmp_path / "stopped", "anchors.limit=1400")
    process = start_clsp(*command)
    while len(list((tmp_path / "stopped").glob("latents/*.npy"))) < 5:
        assert process.returncode is None, process.stderr
        time.sleep(0.002)
    process.send_signal(signum)
    assert process.wait() == (75 if signum == signal.SIGTERM else -signal.SIGKILL)
    finished = list((tmp_path / "stopped").glob("latents/part-*.json"))
    assert len(finished) < 66
    times = [path.stat().st_mtime_ns for path in finished]

    run_clsp(*command)
    assert [path.stat().st_mtime_ns for path in finished] == times
    run_clsp(*training(autoencoder, tmp_path / "whole", "anchors.limit=1400"))
    assert contents(tmp_path / "stopped" / "latents") == contents(tmp_path / "whole" / "latents")
    assert not list((tmp_path / "stopped").rglob("*.tmp"))


def test_extended_and_repaired_after_everything_moved(made, trained, autoencoder, clsp, tmp_path):
    root = tmp_path / "set"
    shutil.copytree(made, root)
    moved = tmp_path / "elsewhere"
    shutil.copytree(autoencoder, moved / "ae")
    shutil.copytree(trained, moved / "model")
    record = moved / "model" / "latent.json"
    content = json.loads(record.read_text()) | {"autoencoder": str(tmp_path / "gone")}
    record.write_text(json.dumps(content))

    # Its autoencoder is not where it was
    extend = ("shards", "extend", root, "--candidates=4", f"--diffusion={moved / 'model'}")
    refusal(clsp(*extend), "its autoencoder is not where it was")
    refusal(clsp(*extend), "extend and repair: --latent")
    other = save_autoencoder(tmp_path / "other", seed=1)
    refusal(clsp(*extend, f"--latent={other}"), "was trained with")
    found = clsp(*extend, f"--latent={moved / 'ae'}")
    assert found.returncode == 0, found.stderr

    # As if made at once
    four = making(trained, tmp_path / "four", "shards.candidates=4")
    assert clsp(*four).returncode == 0
    one, whole = ShardSet(root), ShardSet(tmp_path / "four")
    for position in range(len(one)):
        for candidate in range(4):
            made_later = one.candidate_bytes(position, candidate)
            assert made_later == whole.candidate_bytes(position, candidate)

    # Damage
    for name in ("layer-000/shard-000001.tar", "layer-001/shard-000004.tar"):
        damaged = bytearray((root / name).read_bytes())
        damaged[3000] ^= 1
        (root / name).write_bytes(damaged)
    repair = ("shards", "repair", root, f"--diffusion={moved / 'model'}")
    refusal(clsp(*repair), "its autoencoder is not where it was")
    found = clsp(*repair, f"--latent={moved / 'ae'}")
    assert found.returncode == 0, found.stderr
    assert clsp("shards", "verify", root, "--deep").returncode == 0


def test_the_recipe_names_the_autoencoder_of_a_model_that_does_not(made, trained, clsp, tmp_path):
    bare = tmp_path / "bare"
    shutil.copytree(trained / "unet", bare / "unet")
    shutil.copytree(trained / "scheduler", bare / "scheduler")
    refusal(clsp(*making(bare, tmp_path / "set")), "if it makes latents, name its autoencoder")
    assert not (tmp_path / "set").exists()

    record = json.loads((trained / "latent.json").read_text())
    latent = f"diffusion.latent={record['autoencoder']}"
    command = making(bare, tmp_path / "set", latent)
    for line in (command, [*command, "--check"]):
        refusal(clsp(*line), "does not say what range its latents have; set sampler.clip=false")
    found = clsp(*making(bare, tmp_path / "set", latent, "sampler.clip=false"))
    assert found.returncode == 0, found.stderr
    plan = json.loads((tmp_path / "set" / "plan.json").read_text())
    assert set(plan["diffusion"]["latent"]) == {"origin", "digest", "scaling"}


def test_a_set_of_an_ldm_pipeline(clsp, tmp_path):
    ldm = save_ldm(tmp_path / "ldm")
    found = clsp(*making(ldm, tmp_path / "set", "sampler.clip=false"))
    assert found.returncode == 0, found.stderr
    assert verify_set(tmp_path / "set", deep=True) == []
    refusal(
        clsp(*making(ldm, tmp_path / "small", "sampler.clip=false", "anchors.size=8")),
        "is for latents of 8",
    )


@pytest.mark.parametrize("verb", ["make", "check", "plan"])
def test_models_that_do_not_fit_are_refused_by_make_its_check_and_plan(
    model_folder, autoencoder, trained, clsp, tmp_path, verb
):
    root = tmp_path / "set"
    three = save_autoencoder(tmp_path / "three", latent_channels=3)
    other = save_autoencoder(tmp_path / "other", seed=1)
    cases = (
        (save_unet(tmp_path / "alone"), (), "has (4, 4) channels in and out, the anchors are RGB"),
        (trained, (f"diffusion.latent={three}",), "has latents of 3 channels"),
        (trained, (f"diffusion.latent={other}",), "was trained with"),
        (trained, (f"diffusion.latent={tmp_path}/nothing",), "no config.json or vae/config.json"),
        (trained, ("anchors.size=17",), "17 pixels cannot be divided by 2"),
        (trained, ("anchors.size=32",), "the anchors have 32 pixels"),
        (model_folder, (f"diffusion.latent={autoencoder}", "anchors.size=8"), "for a model of pix"),
    )
    for model, settings, message in cases:
        command = making(model, root, *settings)
        if verb == "plan":
            command = ["shards", "plan", "--seconds=0", *command[2:]]
        if verb == "check":
            command.append("--check")
        refusal(clsp(*command), message)
        assert not root.exists()


@pytest.mark.parametrize(
    ("latent", "settings", "message"),
    [
        ("AE", ("anchors.size=17",), "17 pixels cannot be divided by 2"),
        ("AE", ("anchors.size=18",), "latents of 9 pixels cannot be halved 1 times"),
        ("nobody/no-such-autoencoder", (), "neither as a folder nor on the hub"),
        ("AE/nothing", (), "no config.json or vae/config.json or vqvae/config.json there"),
        ("runs/photos/autoencoder", (), "or train one with: clsp autoencoder train"),
    ],
)
def test_what_cannot_be_trained_is_refused_by_the_check_and_the_training(
    autoencoder, clsp, tmp_path, latent, settings, message
):
    latent = latent.replace("AE", str(autoencoder))
    command = training(latent, tmp_path / "out", *settings)
    for line in ([*command, "--check"], command):
        refusal(clsp(*line), message)
        assert not (tmp_path / "out").exists()


def test_a_finished_model_is_not_trained_again(trained, autoencoder, clsp):
    before = contents(trained)
    found = clsp(*training(autoencoder, trained))
    assert found.returncode == 0
    assert "already trained" in found.stdout
    assert contents(trained) == before


def test_the_whole_way_from_an_autoencoder_of_ones_own(clsp, tmp_path):
    own = (
        "autoencoder.channels=[8,16]",
        "autoencoder.norm_groups=4",
        "autoencoder.blocks=1",
        "autoencoder.steps=4",
        "autoencoder.batch_size=8",
        "autoencoder.sample_steps=0",
    )
    settings = [f"--set={setting}" for setting in (*ANCHORS, *own)]
    folder = tmp_path / "autoencoder"
    found = clsp("autoencoder", "train", "--recipe=digits", f"--out={folder}", *settings)
    assert found.returncode == 0, found.stderr
    found = clsp(*training(folder, tmp_path / "diffusion"))
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""  # its latents are scaled well
    found = clsp(*making(tmp_path / "diffusion", tmp_path / "set"))
    assert found.returncode == 0, found.stderr
    assert verify_set(tmp_path / "set", deep=True) == []


def test_a_latent_models_features_and_clusters(trained, autoencoder, clsp, digits, tmp_path):
    """Images go through the autoencoder, here by hand, before the U-Net sees them."""
    out = tmp_path / "features.parquet"
    source = ("--images=digits", f"--set=anchors.size={SIZE}", "--set=anchors.limit=12")
    found = clsp("embed", f"--encoder=unet:{trained}", *source, f"--out={out}")
    assert found.returncode == 0, found.stderr
    table = pq.read_table(out)
    features = np.stack(table["feature"].to_numpy())

    import torch
    from clsp.shards import AnchorsConfig, ImageSource
    from diffusers import AutoencoderKL

    anchors = ImageSource(AnchorsConfig(limit=12, size=SIZE))
    vae = AutoencoderKL.from_pretrained(autoencoder).eval()
    model = load_diffusion(str(trained), SIZE)
    unet = UNetFeatures(model, default_block(model), 100)
    unet.autoencoder = None
    with torch.no_grad():
        x = in_model_range(np.stack([anchor.image for anchor in anchors]))
        latents = vae.encode(x).latent_dist.mode() * vae.config.scaling_factor
        expected = unet(latents).numpy()
    np.testing.assert_allclose(features, expected, atol=1e-3, rtol=1e-3)

    # Pseudo-classes of these features, and positives of each anchor's
    clusters = ("diffusion.condition=clusters", "diffusion.clusters=3")
    encoder = f"diffusion.cluster_encoder=unet:{trained}"
    model_folder = tmp_path / "clustered"
    found = clsp(*training(autoencoder, model_folder, *clusters, encoder))
    assert found.returncode == 0, found.stderr
    found = clsp(*making(model_folder, tmp_path / "set", "sampler.guidance=2"))
    assert found.returncode == 0, found.stderr
    plan = json.loads((tmp_path / "set" / "plan.json").read_text())
    assert {"condition", "latent"} <= set(plan["diffusion"])
