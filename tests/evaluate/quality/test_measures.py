"""The measures of candidates on sets whose candidates are known: copies, noise, other classes."""

import json

import numpy as np
import pytest
import timm
import torch
from clsp.evaluate import load_encoder, measure_quality, quality_path
from clsp.evaluate.features.encoder import Encoder
from clsp.evaluate.quality.facts import QualityFacts
from clsp.shards import (
    AnchorsConfig,
    DiffusionPlan,
    ImageSource,
    Plan,
    Record,
    ShardsConfig,
    ShardSet,
    SourcePlan,
    read_scores,
    seal_if_complete,
    write_plan,
    write_shard,
)
from clsp.train import AugmentConfig, PretrainConfig, build_backbone
from clsp.train.backbone import save_backbone

COUNT = 60


@pytest.fixture(scope="module")
def anchors():
    return ImageSource(AnchorsConfig(limit=COUNT))


@pytest.fixture(scope="module")
def held_out():
    return ImageSource(AnchorsConfig(split="test", limit=30))


def candidates(anchors, held_out, index):
    """A slight change of the anchor, noise, a copy of the next anchor, a copy of a test image."""
    image = anchors[index].image.astype(int)
    noise = np.random.default_rng(index).integers(0, 256, image.shape)
    slight = np.clip(image + noise // 64, 0, 255)
    return np.stack(
        [slight, noise, anchors[(index + 1) % COUNT].image, held_out[index % 30].image]
    ).astype(np.uint8)


@pytest.fixture
def known_set(tmp_path, anchors, held_out):
    plan = Plan(
        source=SourcePlan(
            name="digits",
            split="train",
            licence="",
            count=COUNT,
            size=8,
            resize="crop",
            digest=anchors.digest,
        ),
        diffusion=DiffusionPlan(origin="none", digest="0" * 64),
        sampler={},
        shards=ShardsConfig(candidates=4, records=COUNT),
    )
    root = tmp_path / "set"
    write_plan(root, plan)
    records = [
        Record(anchors[index], candidates(anchors, held_out, index)) for index in range(COUNT)
    ]
    write_shard(root, plan, 0, 0, records, dict)
    seal_if_complete(root, plan)
    return root


@pytest.fixture
def pixels():
    """An encoder whose features are the pixels."""
    return Encoder(
        torch.nn.Flatten(), {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1)}, "no"
    )


def test_known_candidates_have_the_scores_by_hand(known_set, pixels, anchors, held_out):
    quality = measure_quality(ShardSet(known_set), pixels, PretrainConfig(), held_out)
    real = np.stack([anchor.image.ravel() for anchor in anchors]).astype(float)
    made = np.stack(
        [candidates(anchors, held_out, index).reshape(4, -1) for index in range(COUNT)]
    ).astype(float)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    made /= np.linalg.norm(made, axis=2, keepdims=True)
    scores = quality.scores
    np.testing.assert_allclose(scores["cosine"], np.einsum("nkf,nf->nk", made, real), atol=1e-5)
    inner = np.einsum("nkf,njf->nkj", made, made)
    diversity = [[1 - (inner[n, k].sum() - 1) / 3 for k in range(4)] for n in range(COUNT)]
    np.testing.assert_allclose(scores["diversity"], diversity, atol=1e-5)
    others = np.einsum("nkf,mf->nkm", made, real)
    others[np.arange(COUNT), :, np.arange(COUNT)] = -1
    np.testing.assert_allclose(scores["nearest_train"], others.max(axis=2), atol=1e-5)
    own = np.einsum("nkf,nf->nk", made, real)
    np.testing.assert_allclose(scores["margin"], own - others.max(axis=2), atol=1e-5)
    assert np.array_equal(scores["anchor_rank"], 1 + (others > own[:, :, None]).sum(axis=2))
    assert (scores["nearest_train"][:, 2] > 0.9999).all()  # the copies of other anchors
    assert (scores["nearest_test"][:, 3] > 0.9999).all() and (
        scores["nearest_test"][:, 1] < 0.95
    ).all()
    copies = quality.facts.suspicious
    assert {entry.candidate for entry in copies["nearest_test"]} == {3}
    first = next(entry for entry in copies["nearest_train"] if entry.candidate == 2)
    assert first.nearest == f"train_{(first.position + 1) % COUNT:08d}"


def test_the_probe_tells_kept_labels_from_lost_ones(known_set, pixels, anchors):
    quality = measure_quality(ShardSet(known_set), pixels, PretrainConfig())
    agreement = quality.scores["agreement"]
    labels = anchors.labels()
    assert agreement[:, 0].mean() > 0.95
    same = labels == np.roll(
        labels, -1
    )  # where a copy of the next anchor has the right label by chance
    assert agreement[~same, 2].mean() < 0.1
    assert "nearest_test" not in quality.scores
    chances = quality.scores["label_probability"]
    assert np.all((chances > 0.5) <= (agreement == 1)) and 0 <= chances.min() <= chances.max() <= 1


def test_facts_of_the_whole_set(known_set, pixels):
    facts = measure_quality(ShardSet(known_set), pixels, PretrainConfig()).facts
    assert facts.frechet_distance > 0 and 0 < facts.precision <= 1 and 0 < facts.recall <= 1
    assert facts.images == {"anchors": COUNT, "candidates": 4 * COUNT, "compared": COUNT}
    for shares in facts.cosine_histogram.values():
        assert sum(shares) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("means", "is_too_easy"),
    [
        ({"cosine": 0.92, "augmentation_cosine": 0.84}, True),
        ({"cosine": 0.841, "augmentation_cosine": 0.84}, False),
        ({"cosine": 0.7, "augmentation_cosine": 0.84}, False),
        ({"cosine": 0.92}, False),
        ({}, False),
    ],
)
def test_candidates_nearer_than_ordinary_views_are_called_too_easy(means, is_too_easy):
    note = QualityFacts(means=means).too_easy_note
    assert (note is not None) == is_too_easy
    if note:
        assert "(cosine 0.920) than an augmented view of it does (0.840)" in note


def other_weights(folder):
    import safetensors.torch

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    return safetensors.torch.save(
        {name: value + 1 if value.is_floating_point() else value for name, value in tensors.items()}
    )


@pytest.fixture
def encoder_folder(tmp_path):
    config = PretrainConfig(backbone_kwargs={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]})
    torch.manual_seed(0)
    save_backbone(build_backbone(config), config, 8, tmp_path / "encoder")
    return tmp_path / "encoder"


def test_the_command_adds_scores_and_keeps_the_set_verified(clsp, known_set, encoder_folder):
    arguments = (
        "shards",
        "score",
        known_set,
        "--encoder",
        encoder_folder,
        "--name",
        "tiny",
        "--recipe",
        "digits",
    )
    before = ShardSet(known_set).set_id
    (known_set / "scores").mkdir()
    (known_set / "scores" / "tiny.parquet").write_bytes(
        b"left by a writer that was killed before the seal"
    )
    done = clsp(*arguments)
    assert done.returncode == 0, done.stderr
    scores = read_scores(known_set / "scores" / "tiny.parquet", COUNT)
    assert set(scores) >= {"cosine", "agreement", "nearest_train", "nearest_test"}
    facts = json.loads((quality_path(known_set, "tiny")).read_text())
    assert facts["result"]["means"]["cosine"] == pytest.approx(
        float(scores["cosine"].mean()), abs=1e-4
    )
    means = facts["result"]["means"]
    is_too_easy = means["cosine"] > means["augmentation_cosine"] + 0.005
    assert ("Too easy" in done.stdout) == is_too_easy
    assert facts["set"] == before != ShardSet(known_set).set_id
    assert clsp("shards", "verify", known_set, "--deep").returncode == 0
    sealed = ShardSet(known_set).set_id
    again = clsp(*arguments)
    assert (
        again.returncode == 0
        and "are there already" in again.stdout
        and ShardSet(known_set).set_id == sealed
    )
    (encoder_folder / "model.safetensors").write_bytes(other_weights(encoder_folder))
    other = clsp(*arguments)
    assert other.returncode == 2 and "scores are never changed" in other.stderr


@pytest.mark.parametrize("crop_scale", [None, 0.9])
def test_without_a_recipe_ordinary_views_are_those_of_the_encoders_training(
    clsp, known_set, encoder_folder, crop_scale
):
    training = PretrainConfig()
    if crop_scale:
        training = PretrainConfig(augment=AugmentConfig(crop_scale=crop_scale))
        record = {"name": "simclr", "pretrain": training.recorded()}
        (encoder_folder / "run.json").write_text(json.dumps(record))
    expected = measure_quality(ShardSet(known_set), load_encoder(encoder_folder), training)

    done = clsp("shards", "score", known_set, "--encoder", encoder_folder, "--name", "tiny")

    assert done.returncode == 0, done.stderr
    assert ("by the default augmentations" in done.stdout) == (crop_scale is None)
    means = json.loads(quality_path(known_set, "tiny").read_text())["result"]["means"]
    cosine = expected.facts.means["augmentation_cosine"]
    assert means["augmentation_cosine"] == pytest.approx(cosine, abs=1e-6)


def test_a_set_without_anchors_needs_its_source(clsp, make_set, encoder_folder, tmp_path):
    root = make_set(tmp_path / "bare", include_anchors=False)
    arguments = ("shards", "score", root, "--encoder", encoder_folder, "--name", "tiny")
    refused = clsp(*arguments)
    assert refused.returncode == 2 and "give its source (--recipe)" in refused.stderr
    assert clsp(*arguments, "--recipe", "digits", "--set", "anchors.limit=40").returncode == 0


def test_an_empty_candidate_set_is_refused(pixels, known_set, monkeypatch):
    shards = ShardSet(known_set)
    monkeypatch.setattr(type(shards), "candidates", 0)
    from clsp.core import InputError

    with pytest.raises(InputError, match="60 anchors with 0 candidates each"):
        measure_quality(shards, pixels, PretrainConfig())


def test_those_compared_are_drawn_from_all_candidates(known_set, pixels, monkeypatch):
    """Of the four known candidates of an anchor one is a copy of an anchor: the share among those compared tells."""
    from clsp.evaluate.quality import measures as quality

    monkeypatch.setattr(quality, "SAMPLE", 40)
    compared = {}
    monkeypatch.setattr(
        quality,
        "kernel_distance",
        lambda a, b: compared.update(anchors=a, candidates=b) or (0.0, 0.0),
    )
    measure_quality(ShardSet(known_set), pixels, PretrainConfig())
    assert len(compared["anchors"]) == len(compared["candidates"]) == 40
    shards = ShardSet(known_set)
    made = np.stack(
        [
            shards.candidate(row, k).transpose(2, 0, 1).ravel()
            for row in range(COUNT)
            for k in range(4)
        ]
    )
    which = (
        np.linalg.norm(255 * compared["candidates"].numpy()[:, None] - made[None], axis=2).argmin(
            axis=1
        )
        % 4
    )
    assert min(np.bincount(which, minlength=4)) >= 3


def test_any_timm_model_is_an_encoder(clsp, known_set, tmp_path):
    model = timm.create_model("resnet10t", num_classes=0)
    data = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
    timm.models.save_for_hf(
        model, str(tmp_path / "timm"), model_args={}, data_config=data, safe_serialization=True
    )
    done = clsp("shards", "score", known_set, "--encoder", tmp_path / "timm", "--name", "timm")
    assert done.returncode == 0, done.stderr
    assert set(read_scores(known_set / "scores" / "timm.parquet", COUNT)) >= {
        "cosine",
        "agreement",
        "nearest_train",
    }
