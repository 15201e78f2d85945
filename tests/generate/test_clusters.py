"""Pseudo-classes: k-means on features, their file, and the models that are trained with them."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from clsp.core import InputError
from clsp.generate import (
    ClusterEncoder,
    Condition,
    DiffusionConfig,
    SamplerConfig,
    cluster_features,
    load_diffusion,
    make_plan,
    pretrained,
    read_clusters,
    settled_condition,
    train_diffusion,
)
from clsp.shards import AnchorsConfig, ImageSource, ShardsConfig, read_manifest
from clsp.shards.format.plan import read_plan
from huggingface_hub.constants import HF_HUB_CACHE
from sklearn.metrics import adjusted_rand_score
from small_diffusion import CLUSTERED as CONFIG
from small_diffusion import (
    PIXELS,
    UNREADABLE,
    WEIGHTS,
    crash_before_step,
    pixels,
    tars_by_processes,
)

COMMIT = "0123456789" * 4


@pytest.fixture(scope="module")
def clustered(digits, tmp_path_factory):
    """The folder of a model with three pseudo-classes of 40 digits."""
    return train_diffusion(digits, CONFIG, tmp_path_factory.mktemp("clustered"), encoder=PIXELS)


def test_k_means_finds_groups_that_are_there_whatever_the_scale_of_a_feature():
    generator = np.random.default_rng(0)
    groups_N = generator.integers(4, size=300)
    features_NF = np.eye(4)[groups_N] + 0.1 * generator.standard_normal((300, 4))
    features_NF = features_NF * [1, 1000, 1, 0.01] + 50
    found_N = cluster_features(features_NF, 4, seed=0)
    assert adjusted_rand_score(groups_N, found_N) == 1
    assert np.array_equal(found_N, cluster_features(features_NF, 4, seed=0))


def test_empty_clusters_and_more_clusters_than_anchors_are_refused(digits, tmp_path):
    features_NF = np.repeat(np.eye(2), 20, axis=0)
    with pytest.raises(InputError, match=r"of 5 clusters are empty.*diffusion\.clusters <= 2"):
        cluster_features(features_NF, 5, seed=0)

    config = CONFIG.model_copy(update={"clusters": 41})
    with pytest.raises(InputError, match=r"diffusion\.clusters is 41, and there are 40 anchors"):
        train_diffusion(digits, config, tmp_path, encoder=PIXELS)


def test_a_folder_whose_clusters_were_refused_is_free_for_fewer(digits, tmp_path):
    flat = ClusterEncoder("flat", "11", lambda images: np.zeros((len(images), 4)))
    with pytest.raises(InputError, match="clusters are empty"):
        train_diffusion(digits, CONFIG, tmp_path, encoder=flat)

    fewer = CONFIG.model_copy(update={"clusters": 2, "steps": 1})
    model = load_diffusion(str(train_diffusion(digits, fewer, tmp_path, encoder=PIXELS)))
    assert model.condition is not None
    assert model.condition.classes == 2


def test_anchors_are_not_held_decoded_for_their_pseudo_classes(digits, clustered, monkeypatch):
    clusters = read_clusters(clustered / "clusters.parquet")
    expected = clusters.of(list(digits))
    monkeypatch.setattr(ImageSource, "__getitem__", lambda *_: pytest.fail("decoded"))
    assert clusters.of_source(digits).tolist() == expected


def test_the_model_keeps_assignments_their_digest_and_the_encoders(digits, clustered):
    model = load_diffusion(str(clustered), 8)
    assert model.condition is not None
    assert model.condition.clusters is not None
    assert model.unet.config["num_class_embeds"] == 4
    assert (model.condition.classes, model.condition.null) == (3, 3)

    rows = pq.read_table(clustered / "clusters.parquet").to_pylist()
    expected = cluster_features(pixels(digits), 3, CONFIG.seed).tolist()
    assert [row["cluster"] for row in rows] == expected
    assert [row["key"] for row in rows] == [anchor.key for anchor in digits]
    assert model.condition.classes_of(list(digits)) == expected

    # The plan of a set says so
    plan = make_plan(digits, model, SamplerConfig(), ShardsConfig())
    recorded = json.loads(plan.to_bytes())["diffusion"]["condition"]
    assert recorded == {
        "kind": "clusters",
        "embeddings": 4,
        "null": 3,
        "digest": model.condition.clusters.digest,
        "encoder": "pixels",
        "encoder_digest": "11",
    }


def test_other_pseudo_classes_make_another_model(clustered, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(clustered, other)
    table = pq.read_table(other / "clusters.parquet")
    moved = [(cluster + 1) % 3 for cluster in table["cluster"].to_pylist()]
    pq.write_table(
        table.set_column(2, "cluster", pa.array(moved, pa.int32())), other / "clusters.parquet"
    )
    with pytest.raises(InputError, match=r"clusters\.parquet has the digest .* fetch"):
        load_diffusion(str(other))

    # Not by mistake
    record = json.loads((other / "condition.json").read_text())
    record["digest"] = read_clusters(other / "clusters.parquet").digest
    (other / "condition.json").write_text(json.dumps(record))
    assert load_diffusion(str(other)).digest != load_diffusion(str(clustered)).digest


def test_anchors_that_were_not_clustered_are_refused(clustered, digits):
    condition = load_diffusion(str(clustered)).condition
    assert condition is not None
    others = ImageSource(AnchorsConfig(limit=60))
    with pytest.raises(InputError, match="anchor train_00000050 has no pseudo-class"):
        condition.classes_of([others[50]])

    # Another image under a known key
    changed = replace(digits[3], digest="00")
    with pytest.raises(InputError, match="anchor train_00000003 is another image"):
        condition.classes_of([changed])


def test_an_interrupted_training_with_clusters_ends_with_the_same_weights(
    digits, clustered, tmp_path, monkeypatch
):
    crash_before_step(monkeypatch, 3)
    with pytest.raises(KeyError):
        train_diffusion(digits, CONFIG, tmp_path / "parts", encoder=PIXELS)

    # The features are not extracted again
    monkeypatch.undo()
    parts = train_diffusion(digits, CONFIG, tmp_path / "parts", encoder=UNREADABLE)
    assert (parts / WEIGHTS).read_bytes() == (clustered / WEIGHTS).read_bytes()

    # Another encoder's clusters are another training
    other = ClusterEncoder("pixels", "22", pixels)
    with pytest.raises(InputError, match="trained with other settings"):
        train_diffusion(digits, CONFIG, parts, encoder=other)


def test_the_unet_is_told_the_class_of_most_images_and_none_of_some(digits, tmp_path, monkeypatch):
    told = []
    original = torch.nn.Embedding.forward

    def spy(self, numbers):
        told.append(numbers.tolist())
        return original(self, numbers)

    monkeypatch.setattr(torch.nn.Embedding, "forward", spy)
    config = CONFIG.model_copy(update={"steps": 40, "batch_size": 32, "condition_dropout": 0.25})
    train_diffusion(digits, config, tmp_path, encoder=PIXELS)
    counts = np.bincount(np.concatenate(told), minlength=4)
    sizes = np.bincount(cluster_features(pixels(digits), 3, 0), minlength=3) / 40
    np.testing.assert_allclose(counts / counts.sum(), [*(0.75 * sizes), 0.25], atol=0.05)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_sets_are_equal_for_any_number_of_processes(clustered, digits, tmp_path, guidance):
    model = load_diffusion(str(clustered), 8)
    config = SamplerConfig(steps=2, micro_batch=8, guidance=guidance)
    found = tars_by_processes(model, digits, config, tmp_path)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 5
    recorded = read_manifest(tmp_path / "1").provenance["diffusion"]
    assert recorded["condition"]["kind"] == "clusters"
    assert read_plan(tmp_path / "1").sampler.get("guidance", 1.0) == guidance


def test_a_damaged_folder_of_a_clustered_model_is_refused(clustered, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(clustered, folder)
    (folder / "clusters.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match=r"clusters\.parquet holds no pseudo-classes"):
        load_diffusion(str(folder))

    (folder / "clusters.parquet").unlink()
    with pytest.raises(InputError, match=r"has no clusters\.parquet"):
        load_diffusion(str(folder))

    (folder / "condition.json").write_text('{"kind": "clusters", "classes": 7}')
    with pytest.raises(InputError, match="names 7 classes, the U-Net has 4 embeddings"):
        load_diffusion(str(folder))


def test_labels_are_used_only_where_the_recipe_says_so(digits):
    foreign = Condition("unknown", embeddings=10)
    plain = DiffusionConfig()
    with pytest.raises(InputError, match="not self-supervised.*set diffusion.condition=labels"):
        settled_condition(foreign, plain, "model")

    labels = DiffusionConfig(condition="labels")
    settled = settled_condition(foreign, labels, "model")
    assert settled is not None
    assert settled.kind == "labels"
    assert settled.classes_of(list(digits)) == digits.labels().tolist()
    assert "not self-supervised" in settled.plan.text

    # Labels that the model does not know, though only one anchor of many has such a one
    with pytest.raises(InputError, match="has the label"):
        Condition("labels", embeddings=3).check_anchors(digits)
    with pytest.raises(InputError, match="anchor train_00000025 has the label 9"):
        Condition("labels", embeddings=10, null=9).check_anchors(digits)

    # A class for none that the model does not have
    with pytest.raises(InputError, match=r"null_class is 10, .* has the classes 0 … 9"):
        settled_condition(foreign, labels.model_copy(update={"null_class": 10}), "model")

    # A model without classes, or with others than the recipe says
    with pytest.raises(InputError, match="has no classes"):
        settled_condition(None, labels, "model")
    with pytest.raises(InputError, match="has pseudo-classes"):
        settled_condition(Condition("clusters", 4, 3), labels, "model")


def test_a_model_trained_with_labels_keeps_a_class_for_none(digits, tmp_path):
    config = CONFIG.model_copy(update={"condition": "labels", "cluster_encoder": "", "steps": 1})
    model = load_diffusion(str(train_diffusion(digits, config, tmp_path)), 8)
    assert model.condition == Condition("labels", embeddings=11, null=10)


def cached(name: str, folder: Path) -> Path:
    """Put a model into the cache of the hub, as if it had been fetched; return the cache's folder of it."""
    cache = Path(HF_HUB_CACHE) / f"models--{name.replace('/', '--')}"
    shutil.copytree(folder, cache / "snapshots" / COMMIT)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(COMMIT)
    return cache


def test_a_model_of_the_hub_keeps_its_classes_out_of_reach_of_it(clustered):
    cache = cached("someone/clusters", clustered)
    assert load_diffusion("someone/clusters").digest == load_diffusion(str(clustered)).digest

    # Nobody asked for the record before, so nobody knows
    record = cache / "snapshots" / COMMIT / "condition.json"
    record.unlink()
    with pytest.raises(InputError, match=r"found out whether it has condition\.json.*local folder"):
        load_diffusion("someone/clusters")

    # The hub said that there is none
    absent = cache / ".no_exist" / COMMIT / "condition.json"
    absent.parent.mkdir(parents=True)
    absent.touch()
    assert load_diffusion("someone/clusters").condition == Condition("unknown", embeddings=4)


def test_nothing_is_asked_about_an_unconditional_model_of_pixels(model_folder, monkeypatch):
    cached("someone/plain", model_folder)
    monkeypatch.setattr(pretrained, "hf_hub_download", lambda *_: pytest.fail("asked"))
    assert load_diffusion("someone/plain").condition is None
