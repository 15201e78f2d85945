"""The page in a real browser."""

import json
import re
import shutil

import numpy as np
import pytest
from browser import find_browser, visit
from clsp.core import InputError
from clsp.evaluate import compare_runs, quality_path, write_comparison, write_report
from clsp.shards import ShardSet
from clsp.shards.reading.scores import add_scores

FACTS = {
    "images": "document.images.length",
    "shown": "[...document.images].filter(i => i.complete && i.naturalWidth > 0).length",
    "charts": "[...document.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width > 50).length",
    "headings": "[...document.querySelectorAll('h2')].map(h => h.textContent)",
    "overflow": "document.documentElement.scrollWidth - document.documentElement.clientWidth",
    "text": "getComputedStyle(document.body).color",
    "ink": "getComputedStyle(document.querySelector('svg text')).fill",
    "cells": "[...document.querySelectorAll('td')].map(c => c.textContent)",
}


def write_run(folder, name, seed, top1):
    folder.mkdir(parents=True)
    rows = [
        {"epoch": epoch, "step": epoch, "loss": 2.0 / epoch, "knn": 50 + epoch}
        for epoch in (1, 2, 3)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.json").write_text(json.dumps({"name": name, "seed": seed}))
    points = {"x": [0.0, 1.0, 2.0], "y": [0.0, 2.0, 1.0], "label": [0, 1, 1]}
    for task, result in (
        ("linear", {"protocol": "clsp", "top1": top1}),
        ("knn", {"k20": 70.0, "map": points}),
    ):
        facts = {
            "set": "s",
            "checkpoint": "c" * 64,
            "versions": {"clsp": "0"},
            "finished": "now",
            "recipe": RECIPE,
        }
        (folder / f"{task}.json").write_text(
            json.dumps({"task": task, "result": result, "name": name, "seed": seed, **facts})
        )


RECIPE = {
    "anchors": {"path": "uoft-cs/cifar10"},
    "pretrain": {"backbone": "resnet18", "stem": "cifar", "epochs": 5, "batch_size": 8},
    "linear_eval": {},
}


@pytest.fixture
def folder(tmp_path, shard_set):
    """A comparison of two runs with two seeds, a scored set and its quality."""
    shutil.copytree(shard_set, tmp_path / "shards")
    shards = ShardSet(tmp_path / "shards")
    scores = np.random.default_rng(0).random((len(shards), 3)).astype(np.float32)
    add_scores(shards.root, "tiny", map(shards.key, range(len(shards))), {"cosine": scores})
    entry = {"key": "train_00000001", "position": 1, "candidate": 2, "cosine": 0.99}
    train = {**entry, "nearest": "train_00000003", "nearest_position": 3}
    test = {**entry, "nearest": "test_00000007", "nearest_position": 7}
    result = {
        "frechet_distance": 1.5,
        "means": {"cosine": 0.5, "augmentation_cosine": 0.25},
        "labelled_anchors": 12345,
        "auroc": {"cosine": 0.75, "anchor_rank": 0.25},
        "auroc_error": {"cosine": 0.0123},
        "cosine_histogram": {"candidate": [0.5, 0.5], "augmentation": [0.2, 0.8]},
        "suspicious": {"nearest_train": [train], "nearest_test": [test]},
    }
    quality = {"name": "tiny", "encoder": "an <encoder>", "data": shards.identity, "result": result}
    quality_path(shards.root, "tiny").write_text(json.dumps(quality))
    folders = []
    for name, top1 in (("simclr", 80.0), ("simclr+shards", 83.0)):
        for seed in (0, 1, 2):
            folders.append(tmp_path / "pretrain" / f"{name}-s{seed}")
            write_run(folders[-1], name, seed, top1 + seed)
    write_comparison(compare_runs(folders, out=tmp_path), tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def browser():
    found = find_browser()
    if found is None:
        pytest.skip("no Chromium, and Debian's package cannot be installed here")
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (390, "dark")])
def test_the_page_in_a_browser(folder, browser, tmp_path, width, scheme):
    write_report(folder, folder / "report.html")
    picture = tmp_path / "page.png"
    address = (folder / "report.html").as_uri()
    page, found = visit(browser, tmp_path / "profile", address, FACTS, picture, width, scheme)
    assert page.errors == []
    assert [request for request in page.requests if not request.startswith("data:")] == [address]
    assert found["images"] == found["shown"] == 4  # sheet, hardest, easiest, most suspicious
    assert found["charts"] == 4  # hardness, scores, training, maps
    assert found["overflow"] <= 0  # nothing wider than the screen, also on a phone
    bright = sum(map(int, found["text"].removeprefix("rgb(").rstrip(")").split(","))) > 300
    assert bright == (scheme == "dark") and found["ink"] == found["text"]
    assert {
        "81.00 ± 1.00",
        "84.00 ± 1.00",
        "94.45",
        "+3.00 [+3.00, +3.00]",
        "test_00000007",
    } <= set(found["cells"])
    assert "Differences" in found["headings"] and picture.stat().st_size > 10_000


def test_the_page_of_a_single_run(folder):
    write_report(folder / "pretrain" / "simclr-s0", folder / "run.html")
    page = (folder / "run.html").read_text()
    assert (
        "80.00" in page and "Most suspicious (tiny)" in page and "83." not in page.split("<h2>")[1]
    )
    assert "an &lt;encoder&gt;" in page  # nothing from a file becomes markup


def test_the_page_tells_what_measures_without_labels_are_worth(folder):
    write_report(folder, folder / "report.html")
    page = (folder / "report.html").read_text()
    quality = page.split("<h2>Sample quality (tiny)</h2>")[1].split("<h2>")[0]
    rows = re.findall(r"<td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", quality)
    assert rows[:2] == [("cosine", "higher", "0.750 ± 0.012"), ("anchor rank", "lower", "0.250")]
    assert "<dt>labelled anchors</dt><dd>12345</dd>" in quality
    assert "0.5 is chance" in quality


def test_the_page_says_beside_the_hardness_that_candidates_are_too_easy(folder):
    write_report(folder, folder / "report.html")
    note = (folder / "report.html").read_text().split("Hardness (tiny)")[1].split("</figure>")[0]
    assert "Too easy: candidates lie nearer to their anchor (cosine 0.500)" in note


def test_nothing_but_data_is_referred_to(folder):
    write_report(folder, folder / "report.html")
    page = (folder / "report.html").read_text()
    addresses = [part.split('"')[0] for key in ('src="', 'href="') for part in page.split(key)[1:]]
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in page


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"no results\.json"):
        write_report(tmp_path, tmp_path / "report.html")
    (tmp_path / "results.json").write_text('{"runs": 3}')
    with pytest.raises(InputError, match="is no comparison"):
        write_report(tmp_path, tmp_path / "report.html")


def test_measures_of_another_set_are_not_shown(folder):
    path = quality_path(folder / "shards", "tiny")
    path.write_text(json.dumps({**json.loads(path.read_text()), "data": {"plan": "another"}}))
    write_report(folder, folder / "report.html")
    page = (folder / "report.html").read_text()
    assert (
        "Most suspicious" not in page and "Sample quality" not in page and "Hardest (tiny)" in page
    )


def test_a_comparison_elsewhere_finds_its_runs_and_says_which_are_gone(folder, tmp_path):
    runs = sorted((folder / "pretrain").iterdir())
    elsewhere = tmp_path / "of" / "all"
    write_comparison(compare_runs(runs, out=elsewhere), elsewhere)
    shutil.rmtree(runs[0])
    write_report(elsewhere, elsewhere / "report.html", folder / "shards")
    page = (elsewhere / "report.html").read_text()
    assert (
        "<h2>Training</h2>" in page
        and "Maps of the features" in page
        and f"{runs[0].name}." in page
    )
