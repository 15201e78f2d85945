"""Few labels: the same draws for every run, and scikit-learn's accuracy on each of them."""

import json

import numpy as np
import pytest
import torch
from clsp.core import InputError
from clsp.evaluate import Features, evaluate_few_labels
from clsp.evaluate.features.extract import draw_per_class
from clsp.evaluate.probes import few_labels
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
        assert found["few_labels"]["top1"][f"labels_{amount:g}"] == pytest.approx(expected, abs=0.5)


def test_draws_are_independent_and_amounts_of_one_draw_nested(sets):
    """Of 140 images of a class two draws of 14 share 1.4 in the mean; of all ten classes 14, give or take 4."""
    labels = sets[0].labels_N.numpy()
    drawn = [
        set(few_labels._draw(labels, 0.1, draw).nonzero().flatten().tolist()) for draw in (0, 1)
    ]
    assert len(drawn[0]) == pytest.approx(140, abs=5)
    assert 3 <= len(drawn[0] & drawn[1]) <= 25
    fewer = set(few_labels._draw(labels, 1, 0).nonzero().flatten().tolist())
    assert len(fewer) == 10 and fewer < drawn[0]


def test_a_share_takes_at_least_one_image_of_every_class(sets):
    labels = sets[0].labels_N
    drawn = labels[few_labels._draw(labels.numpy(), 0.0001, 3)]
    assert sorted(drawn.tolist()) == list(range(10))


def test_more_labels_are_better_and_a_share_counts_per_class(sets):
    found = evaluate_few_labels(*sets, 10, (1, 10, 0.5), 5)
    assert found["labels_1"] < found["labels_10"] < found["labels_0.5"]


def test_more_labels_than_there_are_images_are_refused(sets):
    with pytest.raises(
        InputError,
        match=r"linear_eval.labels asks for 500 per class, and class 8 has 13\d training",
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
        top1 = result["few_labels"]["top1"]["labels_1"]
        assert result["labels_1"] == pytest.approx(np.mean(top1))
        assert f"labels_1 {np.mean(top1):.2f} ± {np.std(top1, ddof=1):.2f}" in found.stdout

    swept = clsp(
        "linear-eval",
        *common,
        "--set=linear_eval.labels=1",
        "--set=linear_eval.sweep_lr=[0.1]",
        "--protocol=sweep",
        "--checkpoint",
        run,
        "--out",
        run,
    )
    assert swept.returncode == 0, swept.stderr
    assert json.loads((run / "sweep.json").read_text())["result"]["labels_1"] == result["labels_1"]

    # One seed: the deviation over the draws, marked as such; on the page, too
    compared = clsp("compare", run, "--out", tmp_path)
    cell = f"{np.mean(top1):.2f} ± {np.std(top1, ddof=1):.2f} †"
    assert compared.returncode == 0 and compared.stdout.count(cell) == 2
    assert "linear, 1 per class" in compared.stdout and "sweep, 1 per class" in compared.stdout
    assert "† one seed: the deviation is over the draws" in compared.stdout
    assert clsp("report", run, "--out", tmp_path / "page.html").returncode == 0
    assert cell in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("1.5", "give a whole number, or a share below 1"),
        ("0", "linear_eval.labels.0 = 0: Input should be greater than 0"),
        ("[5, -0.1]", "linear_eval.labels.1 = -0.1: Input should be greater than 0"),
        ("inf", "linear_eval.labels.0 = inf: Input should be a finite number"),
        ("200", "asks for 200 per class, and class 8 has 127 training images; ask for fewer"),
    ],
)
def test_amounts_that_cannot_be_drawn_are_refused_before_any_work(
    clsp, encoder_folder, tmp_path, labels, message
):
    found = clsp(
        "linear-eval",
        "--recipe=digits",
        f"--set=linear_eval.labels={labels}",
        "--checkpoint",
        encoder_folder,
        "--out",
        tmp_path,
    )
    assert found.returncode == 2 and message in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1 and "features" not in found.stdout
    assert not list(tmp_path.iterdir())


def test_knn_asks_for_no_few_labels(clsp, encoder_folder, tmp_path):
    found = clsp(
        "knn",
        "--recipe=digits",
        "--set=linear_eval.labels=200",
        "--checkpoint",
        encoder_folder,
        "--out",
        tmp_path,
    )
    assert found.returncode == 0, found.stderr
