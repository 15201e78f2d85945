"""Sets compared with themselves, with worse ones, and the bootstrap against figures computed another way."""

import json

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.evaluate import compare_quality
from clsp.evaluate.features.encoder import Encoder
from clsp.evaluate.quality.equivalence import _weighted
from clsp.shards import Record, ShardsConfig, ShardSet, seal_if_complete, write_plan, write_shard
from clsp.shards.format.plan import DiffusionPlan, Plan, source_plan


@pytest.fixture
def pixels():
    """An encoder whose features are the pixels."""
    return Encoder(
        torch.nn.Flatten(), {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1)}, "no"
    )


@pytest.fixture
def set_of(digits, tmp_path):
    """A function (name, amplitude, seed) that makes a set whose candidates are the anchors with noise added."""

    def make(name: str, amplitude: int, seed: int = 0, candidates: int = 3) -> ShardSet:
        plan = Plan(
            source=source_plan(digits),
            diffusion=DiffusionPlan(origin="none", digest="0" * 64),
            sampler={"name": name},
            shards=ShardsConfig(candidates=candidates, records=len(digits)),
        )
        write_plan(tmp_path / name, plan)
        generator = np.random.default_rng(seed)

        def noisy(image):
            noise = generator.integers(-amplitude, amplitude + 1, (candidates, *image.shape))
            return np.clip(image.astype(int) + noise, 0, 255).astype(np.uint8)

        write_shard(tmp_path / name, plan, 0, 0, [Record(a, noisy(a.image)) for a in digits], dict)
        seal_if_complete(tmp_path / name, plan)
        return ShardSet(tmp_path / name)

    return make


def test_a_set_equals_itself_exactly(set_of, pixels):
    one = set_of("one", 40)
    found = compare_quality(one, one, pixels, resamples=100)
    assert found.equivalent
    assert all(row.difference == 0 and row.interval == (0, 0) for row in found.measures.values())


def test_worse_candidates_are_not_equivalent(set_of, pixels):
    found = compare_quality(set_of("good", 20), set_of("bad", 255), pixels, resamples=200)
    rows = found.measures
    assert not found.equivalent
    assert rows["frechet distance"].interval[0] > 5 and not rows["frechet distance"].within
    assert rows["label agreement"].difference < -5 and not rows["label agreement"].within
    assert rows["diversity"].difference > 0 > rows["hardness (cosine)"].difference
    assert found.kernel_distance.other[0] > found.kernel_distance.reference[0]


def test_too_few_images_cannot_show_equivalence(set_of, pixels):
    """Two sets of one distribution: 40 anchors leave an interval that is wider than the margin."""
    found = compare_quality(
        set_of("one", 200, 0, 1), set_of("two", 200, 1, 1), pixels, resamples=200
    )
    assert not found.equivalent


def test_the_interval_of_a_mean_is_the_normal_ones(set_of, pixels, digits):
    one, two = set_of("one", 60, 0), set_of("two", 60, 1)
    row = compare_quality(one, two, pixels, resamples=4000).measures["hardness (cosine)"]

    def cosines(shards):
        real = np.stack([anchor.image.ravel() for anchor in digits]).astype(float)
        made = np.stack(
            [[shards.candidate(n, k).ravel() for k in range(3)] for n in range(40)]
        ).astype(float)
        return (
            np.einsum("nkf,nf->nk", made, real)
            / np.linalg.norm(made, axis=2)
            / np.linalg.norm(real, axis=1)[:, None]
        ).mean(1)

    difference = cosines(two) - cosines(one)
    error = difference.std() / np.sqrt(len(difference))
    assert row.difference == pytest.approx(difference.mean(), rel=1e-3)
    low, high = difference.mean() - 1.96 * error, difference.mean() + 1.96 * error
    assert np.allclose(row.interval, [low, high], atol=0.25 * error)


def test_weighted_moments_are_those_of_repeated_anchors():
    features = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(0))
    counts = np.array([2, 0, 1, 1, 0, 3, 0])
    mean, covariance = _weighted(features, counts)
    repeated = np.repeat(features.numpy(), counts, axis=0).reshape(-1, 4)
    assert np.allclose(mean, repeated.mean(0), atol=1e-6) and np.allclose(
        covariance, np.cov(repeated.T), atol=1e-6
    )


def test_sets_that_are_no_pair_are_bad_input(clsp, set_of, ten_shards, shard_set, pixels):
    with pytest.raises(InputError, match="3 and 2 candidates"):
        compare_quality(set_of("three", 9), set_of("two", 9, 0, 2), pixels)
    found = clsp("shards", "compare", shard_set, ten_shards, "--encoder", "no_such_model")
    assert found.returncode == 2 and "no_such_model" in found.stderr


def test_the_command_says_and_writes_what_it_found(clsp, set_of, tmp_path):
    from clsp.train import PretrainConfig, build_backbone
    from clsp.train.backbone import save_backbone

    config = PretrainConfig(backbone_kwargs={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]})
    save_backbone(build_backbone(config), config, 8, tmp_path / "encoder")
    one, two = set_of("one", 30), set_of("two", 255)
    command = [
        "shards",
        "compare",
        one.root,
        two.root,
        "--encoder",
        tmp_path / "encoder",
        "--resamples",
        100,
    ]
    found = clsp(*command, "--out", tmp_path / "found.json")
    assert (
        found.returncode == 1
        and "equivalence is not shown" in found.stdout
        and "NOT within" in found.stdout
    )
    written = json.loads((tmp_path / "found.json").read_text())
    assert written["result"]["anchors"] == 40 and not written["result"]["equivalent"]
    assert clsp(*command[:2], one.root, one.root, *command[4:]).returncode == 0
