"""Candidates chosen by a measure, from the command line to the table."""

import json
import re

import numpy as np
import pytest
from clsp.shards import ShardSet
from clsp.shards.reading.scores import add_scores
from conftest import SMALL_NETWORKS, settings

COMMON = (
    "--recipe",
    "digits",
    *settings({**SMALL_NETWORKS, "pretrain.epochs": 1}),
    "--set=linear_eval.train_limit=200",
    "--set=pretrain.synthetic.scores=probe",
)


@pytest.fixture(scope="module")
def root(make_set, tmp_path_factory):
    """A set with scores; in a half of the anchors one candidate has a margin above 0."""
    root = make_set(tmp_path_factory.mktemp("choice") / "set")
    margins = np.full((40, 3), -1, np.float32)
    margins[:20, 1] = 1
    measures = {"margin": margins, "anchor_rank": 1 - margins, "agreement": margins > 0}
    add_scores(root, "probe", map(ShardSet(root).key, range(40)), measures)
    return root


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["keep=4"], "keep = 4: the set .* has 3 candidates per anchor; keep at most these"),
        (["keep=1.0"], "keep: found 1.0, expected a whole number >= 1"),
        (
            ["keep=[2,3]"],
            r"no candidate has margin in keep = \[2.0, 3.0\]; the values go from -1 to 1",
        ),
        (["keep=1", "scores=''"], "need synthetic.scores"),
        (
            ["keep=1", "scores=other"],
            "has scores probe, expected other; run: clsp shards score SET",
        ),
        (["keep=1", "measure=diversity"], "have the measures margin, .* found diversity"),
        (["keep=1", "measure=agreement"], "agreement uses labels, .*allow_labels=true"),
        (["weighted=true", "measure=anchor_rank"], "would count the worst candidates most"),
    ],
)
def test_bad_choices_are_refused_in_one_line_before_any_work(clsp, root, tmp_path, given, message):
    chosen = [f"--set=pretrain.synthetic.{setting}" for setting in given]
    found = clsp("pretrain", *COMMON, *chosen, "--shards", root, "--out", tmp_path / "run")
    assert found.returncode == 2, found.stderr
    (line,) = found.stderr.strip().splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


def test_what_is_left_to_draw_is_said_and_anchors_without_any_take_no_part(clsp, root, tmp_path):
    chosen = ("--set=pretrain.synthetic.keep=[0,inf]", "--out", tmp_path / "{name}")
    found = clsp("pretrain", *COMMON, *chosen, "--shards", root)
    assert found.returncode == 0, found.stderr
    assert "margin: 20 of 120 candidates may be drawn; 20 of 40 anchors have none" in found.stdout
    assert (
        json.loads((tmp_path / "simclr+shards" / "run.json").read_text())["name"] == "simclr+shards"
    )


def test_a_run_by_labels_is_called_so_from_its_folder_to_the_tables(clsp, root, tmp_path):
    by_labels = ("--set=pretrain.synthetic.measure=agreement", "--set=pretrain.synthetic.keep=1")
    chosen = (*COMMON, *by_labels, "--set=pretrain.synthetic.allow_labels=true")
    out = tmp_path / "{name}-s{seed}"
    trained = clsp("pretrain", *chosen, "--shards", root, "--out", out)
    assert trained.returncode == 0, trained.stderr
    evaluated = clsp("knn", *chosen, "--checkpoint", out, "--out", out)
    assert evaluated.returncode == 0, evaluated.stderr

    compared = clsp("compare", tmp_path / "simclr+shards+labels-s0", "--out", tmp_path)
    assert compared.returncode == 0, compared.stderr
    assert "+labels: a measure that uses labels chose the candidates" in compared.stdout
    for name in ("results.json", "results.md", "results.csv"):
        assert "simclr+shards+labels" in (tmp_path / name).read_text(), name
