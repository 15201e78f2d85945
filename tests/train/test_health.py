"""The measures of health, each by hand in numpy with loops over samples."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from clsp.shards import AnchorsConfig, ImageSource, ShardSet
from clsp.train import PretrainConfig, pretrain
from clsp.train.health import Embeddings, Health, measure_health
from conftest import SMALL_METHOD


def by_hand(view1_ND: np.ndarray, positive_ND: np.ndarray) -> dict[str, float]:
    z1 = view1_ND / np.linalg.norm(view1_ND, axis=1, keepdims=True)
    z3 = positive_ND / np.linalg.norm(positive_ND, axis=1, keepdims=True)
    count, width = z1.shape
    singular = np.sqrt(np.maximum(0, np.linalg.eigvalsh(z1.T @ z1)))
    shares = singular / singular.sum() + 1e-7
    distances = [np.sum((z1[i] - z1[j]) ** 2) for i in range(count) for j in range(i)]
    nearest = [
        all(z3[i] @ z1[i] > z3[i] @ z1[j] for j in range(count) if j != i) for i in range(count)
    ]
    return {
        "rankme": np.exp(-sum(share * np.log(share) for share in shares)),
        "alignment": np.mean([np.sum((z1[i] - z3[i]) ** 2) for i in range(count)]),
        "uniformity": np.log(np.mean([np.exp(-2 * distance) for distance in distances])),
        "deviation": np.mean([np.std(z1[:, d], ddof=1) for d in range(width)]) * width**0.5,
        "nearest": np.mean(nearest),
    }


@pytest.mark.parametrize("rank", [8, 2])
def test_every_measure_is_what_a_loop_over_the_samples_gives(rank):
    generator = np.random.default_rng(0)
    view1 = generator.standard_normal((40, rank)) @ generator.standard_normal((rank, 8)) + 0.3
    positive = view1 + 0.8 * generator.standard_normal((40, 8))
    found = measure_health(Embeddings(torch.from_numpy(view1), torch.from_numpy(positive)))
    expected = by_hand(view1, positive)
    assert 0 < expected["nearest"] < 1
    for name, value in found.content().items():
        assert value == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
    assert not found.collapses()


def test_embeddings_that_are_all_alike_collapse():
    one = torch.randn(1, 16)
    alike = Embeddings(one + 0.01 * torch.randn(64, 16), one + 0.01 * torch.randn(64, 16))
    found = measure_health(alike)
    assert found.collapses()
    assert found.deviation < 0.05
    assert found.rankme < 3


def test_a_run_that_loses_most_of_its_deviation_is_told_of(
    shard_set, monkeypatch, caplog, tmp_path
):
    """A collapse that comes slowly never has to fall as low as one from the first step on."""
    deviations = iter([0.5, 0.9, 0.3, 0.2])

    def measured(embeddings: Embeddings) -> Health:
        return replace(measure_health(embeddings), deviation=next(deviations))

    monkeypatch.setattr("clsp.train.progress.measure_health", measured)
    config = PretrainConfig(
        **SMALL_METHOD, epochs=4, batch_size=16, queue_size=32, warmup_epochs=1, workers=0
    )
    pretrain(ShardSet(shard_set), config, tmp_path)

    messages = [record.getMessage() for record in caplog.records]
    (told,) = [message for message in messages if "collapses" in message]
    assert "epoch 4" in told
    assert "deviation 0.200 of 1, at most 0.900 so far" in told


@pytest.mark.slow
@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_a_run_that_collapses_is_told_of_within_an_epoch(clsp, caplog, tmp_path, weight):
    """λ = 1 from the first step on, without a warm-up, with SGD: of digits and candidates of the same class."""
    digits = ImageSource(AnchorsConfig())
    images = np.stack([anchor.image for anchor in digits])
    labels = digits.labels()
    positives = np.empty((len(images), 1, 8, 8, 3), np.uint8)
    for label in range(10):
        members = np.flatnonzero(labels == label)
        positives[members, 0] = images[np.roll(members, 1)]

    np.save(tmp_path / "positives.npy", positives)
    shards = tmp_path / "shards"
    made = clsp(
        "shards", "import-npy", tmp_path / "positives.npy", "--recipe", "digits", "--out", shards
    )
    assert made.returncode == 0, made.stderr

    values = {
        "epochs": 2,
        "optimizer": "sgd",
        "lr": 0.3,
        "temperature": 0.2,
        "synthetic.warmup": 0,
        "synthetic.weight": weight,
    }
    changes = []
    for key, value in values.items():
        changes += ["--set", f"pretrain.{key}={value}"]
    run = clsp(
        "pretrain", "--recipe", "digits", *changes, "--shards", shards, "--out", tmp_path / "run"
    )
    assert run.returncode == 0, run.stderr
    assert ("epoch 1: this run collapses" in caplog.text) is (weight == 1)
    first = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    assert (first["deviation"] < 0.05) is (weight == 1)
