"""Few labels: the same draws for every run, and scikit-learn's accuracy on each of them."""

import json

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.evaluate import Features, evaluate_few_labels
from clsp.evaluate.features.extract import draw_per_class
from conftest import SMALL_NETWORKS, settings
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression


@pytest.fixture(scope="module")
def sets() -> tuple[Features, Features]:
    x, y = load_digits(return_X_y=True)
    features, labels = torch.from_numpy(x).float(), torch.from_numpy(y)
    return Features(features[:1400], None, labels[:1400]), Features(
        features[1400:], None, labels[1400:]
    )


def test_each_draw_is_a_logistic_regression_on_standardised_features(sets):
    train, test = sets
    x, y = train.plain_NF.double().numpy(), train.labels_N.numpy()
    mean, std = x.mean(axis=0), x.std(axis=0, ddof=1)
    std[std < 1e-6] = 1
    for amount, count in ((3, lambda size: 3), (0.02, lambda size: round(0.02 * size))):
        expected = []
        for draw in range(4):
            chosen = draw_per_class(y, count, "few labels", draw)
            assert 20 <= chosen.sum() <= 30
            probe = LogisticRegression(C=1.0, max_iter=5000, tol=1e-6).fit(
                (x[chosen] - mean) / std, y[chosen]
            )
            expected.append(
                100 * probe.score((test.plain_NF.numpy() - mean) / std, test.labels_N.numpy())
            )
        found = evaluate_few_labels(train, test, 10, (amount,), 4)
        assert found[f"labels_{amount:g}"] == pytest.approx(np.mean(expected), abs=0.3)
        assert found["few_labels"]["std"][f"labels_{amount:g}"] == pytest.approx(
            np.std(expected, ddof=1), abs=0.3
        )


def test_more_labels_are_better_and_a_share_counts_per_class(sets):
    found = evaluate_few_labels(*sets, 10, (1, 10, 0.5), 5)
    assert found["labels_1"] < found["labels_10"] < found["labels_0.5"]


def test_more_labels_than_there_are_images_are_refused(sets):
    with pytest.raises(
        InputError,
        match=r"linear_eval.labels asks for 500 per class, and a class has 13\d training",
    ):
        evaluate_few_labels(*sets, 10, (500,), 1)


def test_the_command_writes_them_beside_the_full_accuracy(clsp, shard_set, tmp_path):
    common = ("--recipe", "digits", *settings(SMALL_NETWORKS), "--set=linear_eval.label_draws=3")
    run = tmp_path / "run"
    assert clsp("pretrain", *common, "--shards", shard_set, "--out", run).returncode == 0
    for given in ("[1, 0.1]", "1"):
        found = clsp(
            "linear-eval",
            *common,
            f"--set=linear_eval.labels={given}",
            "--checkpoint",
            run,
            "--out",
            run,
        )
        assert found.returncode == 0, found.stderr
        result = json.loads((run / "linear.json").read_text())["result"]
        assert {"top1", "labels_1"} <= set(result) and ("labels_0.1" in result) == (given != "1")
        assert result["few_labels"]["draws"] == 3
    compared = clsp("compare", run, "--out", tmp_path)
    assert compared.returncode == 0 and "linear, 1 per class" in compared.stdout
    refused = clsp(
        "linear-eval", *common, "--set=linear_eval.labels=1.5", "--checkpoint", run, "--out", run
    )
    assert refused.returncode == 2 and "give a whole number, or a share below 1" in refused.stderr
