"""A diffusion U-Net as an encoder of every command: names, digests, the choice by labels."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from clsp.cli.main import run
from clsp.core import InputError
from clsp.evaluate import (
    choose_unet_features,
    encoder_digest,
    load_encoder,
    parse_unet_name,
)
from clsp.generate import UNetFeatures, load_diffusion
from clsp.shards import AnchorsConfig, ImageSource
from sklearn.linear_model import LogisticRegression


@pytest.mark.parametrize(
    ("text", "path", "block", "timestep", "is_chosen"),
    [
        ("unet:runs/x/diffusion", "runs/x/diffusion", None, None, False),
        ("unet:a@b/diffusion@up1:50", "a@b/diffusion", "up1", 50, False),
        ("unet:google/ddpm-cifar10-32@chosen", "google/ddpm-cifar10-32", None, None, True),
        ("unet:folder@down0:0", "folder", "down0", 0, False),
    ],
)
def test_names_are_taken_apart_and_put_together(text, path, block, timestep, is_chosen):
    name = parse_unet_name(text)
    assert (name.path, name.block, name.timestep) == (path, block, timestep)
    assert name.is_chosen is is_chosen
    assert name.text == text


def test_the_encoder_gives_the_blocks_features_of_images_in_its_range(model_folder, digits):
    images = np.stack([anchor.image for anchor in digits[:5]])
    encoder = load_encoder(f"unet:{model_folder}@mid:120")
    model = load_diffusion(str(model_folder))
    x_BCHW = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        expected = UNetFeatures(model, "mid", 120)(x_BCHW)
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=1e-4)
    assert encoder.size == 8


def test_another_block_or_timestep_is_another_encoder(model_folder):
    names = ["", "@up0:100", "@up1:100", "@up0:101"]
    digests = [encoder_digest(f"unet:{model_folder}{name}") for name in names]
    assert digests[0] == digests[1]  # the default
    assert len(set(digests[1:])) == 3


def test_what_there_is_not_is_refused(model_folder, tmp_path):
    for name, message in (
        (f"unet:{model_folder}@up9:50", "no block up9"),
        (f"unet:{model_folder}@up1:1000", "timesteps 0 … 999"),
        (f"unet:{tmp_path}/nothing", "does not exist"),
        ("unet:", "expected unet:DIR"),
        (f"unet:{model_folder}@chosen", "labels choose in linear-eval, knn and transfer only"),
    ):
        with pytest.raises(InputError, match=message):
            load_encoder(name)


def test_labels_choose_the_best_block_on_a_part_of_train(trained_model_folder):
    """The accuracy of what was chosen, again, by scikit-learn."""
    train = ImageSource(AnchorsConfig(limit=600))
    name = parse_unet_name(f"unet:{trained_model_folder}@chosen")
    choice = choose_unet_features(name, train)
    best = f"{choice.block}:{choice.timestep}"
    assert choice.accuracies[best] == max(choice.accuracies.values())
    assert len(choice.accuracies) == 5 * 7

    # The same images are held out by hand
    from clsp.core import permutation
    from clsp.evaluate.features.extract import hold_out

    chosen = np.sort(permutation(len(train), "unet features")[:3000])
    labels = train.labels()[chosen]
    held_out = hold_out(labels, 0.2, "unet features")
    encoder = load_encoder(name.at(choice.block, choice.timestep).text)
    features = encoder(np.stack([train[int(place)].image for place in chosen])).numpy()
    probe = LogisticRegression(C=1.0, max_iter=5000, tol=1e-6)
    probe.fit(features[~held_out], labels[~held_out])
    accuracy = 100 * probe.score(features[held_out], labels[held_out])
    assert choice.accuracies[best] == pytest.approx(accuracy, abs=1.0)
    assert accuracy > 50


def test_every_probe_takes_a_unet_and_its_row_is_called_ddae(trained_model_folder, tmp_path):
    common = ["--recipe", "digits", "--out", str(tmp_path / "ddae")]
    limits = ["linear_eval.train_limit=400", "linear_eval.epochs=3", "linear_eval.labels=[]"]
    settings = [word for limit in limits for word in ("--set", limit)]
    chosen = f"unet:{trained_model_folder}@chosen"
    fixed = f"unet:{trained_model_folder}@up0:30"
    assert run(["linear-eval", "--checkpoint", chosen, *common, *settings]) == 0
    assert run(["knn", "--checkpoint", fixed, *common, *settings]) == 0

    linear = json.loads((tmp_path / "ddae" / "linear.json").read_text())
    assert (linear["name"], linear["seed"]) == ("ddae", 0)
    place = linear["unet"]["chosen"]
    assert linear["unet"]["held_out_top1"][place] == max(linear["unet"]["held_out_top1"].values())
    assert linear["checkpoint"] == encoder_digest(f"unet:{trained_model_folder}@{place}")
    knn = json.loads((tmp_path / "ddae" / "knn.json").read_text())
    assert knn["checkpoint"] == encoder_digest(fixed)

    # A table with that row
    assert run(["compare", str(tmp_path / "ddae"), "--out", str(tmp_path / "table")]) == 0
    assert "ddae" in (tmp_path / "table" / "results.md").read_text()


def test_embed_and_score_take_a_unet(model_folder, shard_set, tmp_path):
    out = tmp_path / "features.parquet"
    name = f"unet:{model_folder}@up1:10"
    arguments = ["embed", "--encoder", name, "--images", "digits", "--set", "anchors.limit=20"]
    assert run([*arguments, "--out", str(out)]) == 0
    features = np.array(pq.read_table(out)["feature"].to_pylist(), np.float32)
    expected = load_encoder(name)(
        np.stack([image.image for image in ImageSource(AnchorsConfig(limit=20))])
    )
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-5)
