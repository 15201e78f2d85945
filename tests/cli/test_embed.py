"""`clsp embed`: every image's features in one Parquet file, as the encoder gives them and as any program reads them."""

import json
import os
import re
import shutil
import signal
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from clsp.cli.main import STOPPED
from clsp.core import sha256_file
from clsp.evaluate import Encoder, load_encoder
from clsp.evaluate.features import embed as module
from clsp.shards import AnchorsConfig, ImageSource, ShardSet
from conftest import REPOSITORY
from pictures import put
from PIL import Image


@pytest.fixture
def embed(clsp, encoder_folder, tmp_path):
    """A function (source, further arguments) that runs the command; its file is `out`."""

    def run(
        source, *arguments, out=tmp_path / "out.parquet", encoder=encoder_folder
    ) -> SimpleNamespace:
        return clsp("embed", "--encoder", encoder, "--images", source, "--out", out, *arguments)

    run.out = tmp_path / "out.parquet"
    return run


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of nine images without labels, wider than high."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (12, 20, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def features_of(path) -> np.ndarray:
    table = pq.read_table(path)
    return table["feature"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)


def record_of(path) -> dict:
    return json.loads(pq.read_metadata(path).metadata[b"clsp"])


def test_each_row_is_an_image_with_its_features(embed, encoder_folder, monkeypatch):
    monkeypatch.setattr(module, "ROW_GROUP", 128)
    done = embed("digits", "--set=anchors.split=test")
    assert done.returncode == 0, done.stderr
    assert "embed: 359/359 images" in done.stdout

    # Keys, numbers and labels are those of the source
    images = ImageSource(AnchorsConfig(split="test"))
    table = pd.read_parquet(embed.out)
    assert list(table.columns) == ["key", "index", "label", "feature"]
    assert table["key"].tolist() == [images.key(place) for place in range(359)]
    assert table["index"].tolist() == list(range(359))
    assert table["label"].tolist() == images.labels().tolist()

    # The features are the encoder's, each in its row; three readers agree
    features = np.stack(table["feature"])
    encoder = load_encoder(encoder_folder)
    expected = encoder(np.stack([image.image for image in images])).numpy()
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected, atol=1e-5)
    assert np.array_equal(features, features_of(embed.out))
    loaded = datasets.load_dataset("parquet", data_files=str(embed.out), split="train")
    assert np.array_equal(features, loaded.with_format("numpy")["feature"][:])

    file = pq.ParquetFile(embed.out)
    assert [file.metadata.row_group(group).num_rows for group in range(3)] == [128, 128, 103]
    assert file.schema_arrow.field("feature").type.list_size == features.shape[1]


def test_the_file_says_what_it_holds_and_is_the_same_each_time(embed, encoder_folder, tmp_path):
    done = embed("digits", "--set=anchors.limit=70")
    assert done.returncode == 0, done.stderr
    images = ImageSource(AnchorsConfig(limit=70))
    record = record_of(embed.out)
    assert record["encoder"] == str(encoder_folder) and record["precision"] == "no"
    assert record["encoder_digest"] == sha256_file(encoder_folder / "model.safetensors")
    assert set(record["versions"]) == {"clsp"}
    assert record["source"] == {
        "path": "digits",
        "split": "train",
        "label": "",
        "images": 70,
        "size": 8,
        "resize": "crop",
        "digest": images.digest,  # that of a source which reads itself
        "plan": None,
    }

    again = tmp_path / "again.parquet"
    assert embed("digits", "--set=anchors.limit=70", out=again).returncode == 0
    assert again.read_bytes() == embed.out.read_bytes()


def test_images_without_labels_are_brought_to_the_encoders_size(embed, photos, encoder_folder):
    assert embed(photos).returncode == 0
    assert pd.read_parquet(embed.out)["label"].isna().all()
    images = ImageSource(AnchorsConfig(path=str(photos), size=8))
    expected = load_encoder(encoder_folder)(np.stack([image.image for image in images])).numpy()
    np.testing.assert_allclose(features_of(embed.out), expected, atol=1e-5)


def test_small_images_are_enlarged_without_a_word_about_settings(embed, tmp_path):
    for number in range(3):
        put(tmp_path / "small" / f"{number}.png", Image.new("RGB", (5, 6), (number, 0, 0)))
    done = embed(tmp_path / "small")
    assert done.returncode == 0, done.stderr
    assert pq.read_metadata(embed.out).num_rows == 3
    assert "anchors.size" not in done.stdout and "anchors.upscale" not in done.stdout


def test_the_page_reads_the_features_in_two_ways(embed, photos, monkeypatch, tmp_path):
    assert embed(photos, out=tmp_path / "photos.parquet").returncode == 0
    monkeypatch.chdir(tmp_path)
    page = (REPOSITORY / "docs" / "evaluation.md").read_text()
    found = []
    for code in re.findall(r"```python\n(.*?)```", page, re.S):
        names: dict = {}
        exec(code, names)
        found.append(names["features"])

    assert len(found) == 2 and found[0].shape == (9, 8) and np.array_equal(*found)


def test_other_keys_come_from_a_recipe_and_settings(embed, photos, tmp_path):
    recipe = tmp_path / "mine.toml"
    recipe.write_text('[anchors]\npath = "nowhere"\nresize = "squash"\nlimit = 5\n')
    assert embed(photos, "--recipe", recipe, "--set=anchors.size=16").returncode == 0
    source = record_of(embed.out)["source"]
    assert (source["resize"], source["images"], source["size"]) == ("squash", 5, 16)


def test_images_that_do_not_decode_end_the_work_or_are_left_out(embed, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "4.png").write_bytes(b"no image")
    refused = embed(folder)
    assert refused.returncode == 2 and "train_00000004" in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]

    done = embed(folder, "--set=anchors.on_error=skip")
    assert done.returncode == 0 and "skipped 1 of 9" in done.stdout
    assert pd.read_parquet(embed.out)["index"].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert embed(folder, "--set=anchors.on_error=skip").returncode == 0  # the same job


def test_a_shard_set_gives_its_anchors(embed, shard_set, encoder_folder, make_set, tmp_path):
    assert embed(shard_set).returncode == 0
    shards = ShardSet(shard_set)
    table = pd.read_parquet(embed.out)
    assert table["key"].tolist() == [shards.key(position) for position in range(40)]
    assert table["label"].tolist() == shards.labels().tolist()
    expected = load_encoder(encoder_folder)(np.stack([shards.anchor(i) for i in range(40)])).numpy()
    np.testing.assert_allclose(features_of(embed.out), expected, atol=1e-5)
    source = record_of(embed.out)["source"]
    assert source["plan"] == shards.plan.digest and source["digest"] == shards.plan.source.digest

    # A set without anchors finds them by the recipe
    bare = make_set(tmp_path / "bare", include_anchors=False)
    out = tmp_path / "bare.parquet"
    done = embed(bare, "--recipe=digits", "--set=anchors.limit=40", out=out)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(features_of(out), features_of(embed.out))
    refused = embed(bare, out=tmp_path / "none.parquet")
    assert refused.returncode == 2 and "check the recipe's [anchors]" in refused.stderr


def test_the_same_features_are_not_computed_again_and_others_not_lost(embed, photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    assert embed(folder).returncode == 0
    before = embed.out.read_bytes()
    again = embed(folder)
    assert again.returncode == 0 and "there already, of 9 images" in again.stdout
    assert "embed: " not in again.stdout

    # Another setting, another image in the same place, another kind of file
    other = embed(folder, "--set=anchors.resize=squash")
    assert other.returncode == 2 and "source.resize: crop there, squash here" in other.stderr
    Image.new("RGB", (20, 12)).save(folder / "3.png")
    changed = embed(folder)
    assert changed.returncode == 2 and "source.digest" in changed.stderr
    assert len(changed.stderr.strip().splitlines()) == 1
    assert embed.out.read_bytes() == before

    foreign = tmp_path / "thesis.parquet"
    foreign.write_text("x")
    refused = embed(folder, out=foreign)
    assert refused.returncode == 2 and "holds no features of clsp embed" in refused.stderr
    pd.DataFrame({"a": [1]}).to_parquet(foreign)
    assert embed(folder, out=foreign).returncode == 2
    assert pd.read_parquet(foreign)["a"].tolist() == [1]
    assert "is a folder" in embed(folder, out=folder).stderr


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("./nowhere", (), "./nowhere does not exist"),
        ("digits", ("--set=anchors.split=valid",), "splits train and test"),
        (
            "digits",
            ("--set=anchors.sizes=8",),
            "unknown key anchors.sizes; the nearest is anchors.size",
        ),
        ("digits", ("--encoder=./nowhere",), "no folder of a model"),
        ("", (), "no source of images; expected a folder"),
    ],
)
def test_bad_input_is_one_line(embed, source, arguments, message, tmp_path):
    found = embed(source, *arguments)
    assert found.returncode == 2 and message in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_stop_leaves_no_file(embed, monkeypatch, tmp_path):
    """The signal comes with the second batch."""
    original = Encoder.__call__
    batches = []

    def called(self, images, flips=False):
        batches.append(images)
        if len(batches) == 3:  # the first one asks for the features' number
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, images, flips)

    monkeypatch.setattr(Encoder, "__call__", called)
    found = embed("digits")
    assert found.returncode == STOPPED, found.stderr
    assert len(batches) == 3 and not list(tmp_path.iterdir())
