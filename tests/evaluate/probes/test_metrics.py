import numpy as np
import pytest
from clsp.evaluate.probes.metrics import accuracy_with_interval, classification


def test_wilson_interval_of_a_textbook_case():
    """81 of 263: Newcombe (1998), table I, 0.2553 … 0.3662."""
    result = accuracy_with_interval("top1", np.arange(263) < 81)
    assert result["top1"] == pytest.approx(100 * 81 / 263)
    assert result["top1_interval"] == pytest.approx([25.53, 36.62], abs=0.01)


def test_accuracies_by_hand():
    labels = np.array([0, 0, 0, 1, 2, 3, 4, 5])
    ranked = np.array([[0, 1], [0, 1], [1, 0], [1, 0], [0, 1], [3, 0], [0, 4], [5, 0]])
    result = classification(ranked, labels, 6)
    assert result["top1"] == pytest.approx(100 * 5 / 8)
    assert result["mean_per_class"] == pytest.approx(100 * (2 / 3 + 1 + 0 + 1 + 0 + 1) / 6)
    assert result["top5"] == pytest.approx(100 * 7 / 8)  # the label among all ranks given
    low, high = result["mean_per_class_interval"]
    assert 0 <= low < result["mean_per_class"] < high <= 100


def test_mean_per_class_interval_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    labels, chances = np.repeat(np.arange(10), 40), np.linspace(0.5, 0.9, 10)
    covered = 0
    for _ in range(400):
        hits = generator.random(400) < chances[labels]
        low, high = classification(np.where(hits, labels, -1)[:, None], labels, 10)[
            "mean_per_class_interval"
        ]
        covered += low <= 70 <= high
    assert 0.92 <= covered / 400 <= 0.985
