"""`clsp autoencoder train`: what it leaves in its folder, and what it refuses in one line."""

import json
import tomllib

import pytest
import torch
from conftest import settings
from diffusers import AutoencoderKL

SMALL = {
    "anchors.limit": 40,
    "autoencoder.channels": [8, 16],
    "autoencoder.norm_groups": 8,
    "autoencoder.blocks": 1,
    "autoencoder.steps": 4,
    "autoencoder.batch_size": 8,
    "autoencoder.sample_steps": 2,
}


@pytest.fixture
def train(clsp, tmp_path):
    """Run the command with small settings, some of them changed."""

    def run(*flags, out=tmp_path / "model", **changes):
        named = {f"autoencoder.{key}": value for key, value in changes.items()}
        chosen = settings({**SMALL, **named})
        return clsp("autoencoder", "train", "--recipe", "digits", *chosen, "--out", out, *flags)

    return run


def assert_refused(found, *parts: str) -> None:
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 2, found.stderr
    assert len(lines) == 1 and all(part in lines[0] for part in parts), lines


def test_the_folder_of_an_autoencoder(train, tmp_path):
    out = tmp_path / "model"
    found = train()
    assert found.returncode == 0, found.stderr
    assert {path.name for path in out.iterdir() if path.name[0] != "."} == {
        "config.json",
        "diffusion_pytorch_model.safetensors",
        "log.jsonl",
        "recipe.toml",
        "samples",
        "training.json",
    }
    recipe = tomllib.loads((out / "recipe.toml").read_text(encoding="utf-8"))
    assert recipe["autoencoder"]["channels"] == [8, 16]
    last = json.loads((out / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert last.keys() == {"step", "loss", "reconstruction", "kl", "psnr"}

    # Plain diffusers
    net, loading = AutoencoderKL.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        assert net(torch.zeros(1, 3, 8, 8)).sample.shape == (1, 3, 8, 8)

    # Once more
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = train()
    assert again.returncode == 0 and "already trained" in again.stdout
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_perceptual_term_in_the_features_of_a_folder(train, tmp_path, encoder_folder):
    found = train(perceptual=encoder_folder, perceptual_weight=0.3)
    assert found.returncode == 0, found.stderr
    rows = (tmp_path / "model" / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[-1])["perceptual"] > 0
    record = json.loads((tmp_path / "model" / "training.json").read_text(encoding="utf-8"))
    assert str(encoder_folder) not in json.dumps(record) and record["perceptual_weight"] == 0.3


@pytest.mark.parametrize("flags", [(), ("--check",)])
@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        (
            {"channels": [8, 8, 8, 8, 8]},
            ["anchors of 8 pixels", "halved 4 times", "autoencoder.channels", "anchors.size"],
        ),
        ({"channels": [8, 12]}, ["autoencoder: channels must be multiples of norm_groups = 8"]),
        ({"perceptual": "resnet1000"}, ["resnet1000", "timm has no model of that name"]),
        ({"perceptual": "./nowhere"}, ["./nowhere", "no folder of a model"]),
        (
            {"perceptual_weight": 0.5},
            ["perceptual_weight is 0.5", "perceptual names no model", "set autoencoder.perceptual"],
        ),
        ({"perceptual_weight": 0}, ["autoencoder.perceptual_weight = 0", "greater than 0"]),
        ({"chanels": [8]}, ["unknown key autoencoder.chanels", "autoencoder.channels"]),
        ({"kl_weight": -1}, ["autoencoder.kl_weight = -1"]),
    ],
)
def test_bad_settings_are_refused_before_any_work(train, tmp_path, changes, parts, flags):
    assert_refused(train(*flags, **changes), *parts)
    assert not (tmp_path / "model").exists()


def test_a_model_without_stages_for_these_images_is_refused(train, tmp_path, monkeypatch):
    class Flat(torch.nn.Module):
        def forward(self, images):
            return [images.flatten(1)]

    facts = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    monkeypatch.setattr("clsp.evaluate.load_stages", lambda name: (Flat(), facts))
    found = train(perceptual="resnet18")
    assert_refused(found, "autoencoder.perceptual = resnet18", "images of 8 pixels", "(1, 192)")
    assert not (tmp_path / "model").exists()


def test_the_features_of_a_unet_are_no_stages(train, model_folder):
    found = train(perceptual=f"unet:{model_folder}")
    assert_refused(found, f"unet:{model_folder}", "expected a timm model")


def test_other_settings_in_the_folder_are_refused(train, tmp_path):
    assert train().returncode == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert_refused(train(steps=5), "other settings", "training.json", "choose another --out")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    assert_refused(train(out=foreign), "is no model of clsp autoencoder train")


def test_check_trains_nothing(train, tmp_path):
    assert train("--check").returncode == 0
    assert not (tmp_path / "model").exists()


def test_a_training_keeps_the_precision_it_was_begun_with(
    train, tmp_path, monkeypatch, forget_precision
):
    for answer, expected in (("yes", "bf16"), ("no", "no")):
        monkeypatch.setenv("CLSP_BF16", answer)
        forget_precision()
        out = tmp_path / answer
        assert train(precision="auto", out=out).returncode == 0
        record = json.loads((out / "training.json").read_text(encoding="utf-8"))
        assert record["precision"] == expected

    forget_precision()
    again = train(precision="auto", out=tmp_path / "yes")  # on a machine without bf16
    assert again.returncode == 0 and "already trained" in again.stdout
    assert "note: autoencoder.precision asks for bfloat16" in again.stdout
