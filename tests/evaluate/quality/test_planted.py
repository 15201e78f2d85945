"""Sets whose wrong positives are planted: what the label-free measures are worth, computed by hand."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from clsp.evaluate import (
    areas_under_roc,
    compare_quality,
    encoder_digest,
    measure_quality,
    quality_path,
)
from clsp.evaluate.features.encoder import Encoder
from clsp.shards import (
    AnchorsConfig,
    DiffusionPlan,
    ImageSource,
    Plan,
    Record,
    ShardsConfig,
    ShardSet,
    read_scores,
    seal_if_complete,
    write_plan,
    write_shard,
)
from clsp.shards.format.plan import source_plan
from clsp.train import PretrainConfig

COUNT = 120
LABEL_FREE = ["cosine", "anchor_rank", "margin", "diversity", "nearest_train"]


@pytest.fixture(scope="module")
def anchors():
    return ImageSource(AnchorsConfig(limit=COUNT))


@pytest.fixture(scope="module")
def images(anchors):
    return np.stack([anchor.image for anchor in anchors])


@pytest.fixture
def pixels():
    """An encoder whose features are the pixels."""
    config = {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1)}
    return Encoder(torch.nn.Flatten(), config, "no")


def planted(images, labels) -> np.ndarray:
    """Return per anchor a copy of it, a brighter version, another image of its class, and one of another class."""
    generator = np.random.default_rng(0)
    found = []
    for anchor, label in enumerate(labels):
        others = np.arange(len(labels)) != anchor
        same = generator.choice(np.flatnonzero((labels == label) & others))
        wrong = generator.choice(np.flatnonzero(labels != label))
        brighter = np.minimum(images[anchor].astype(int) + 10, 255).astype(np.uint8)
        found.append(np.stack([images[anchor], brighter, images[same], images[wrong]]))
    return np.stack(found)


@pytest.fixture
def set_of(anchors, tmp_path):
    """A function (candidates `(N, K, H, W, 3)`, labels) that makes a set; None: the digits' own labels."""

    def make(candidates, labels=None, name="set") -> ShardSet:
        plan = Plan(
            source=source_plan(anchors),
            diffusion=DiffusionPlan(origin="none", digest="0" * 64),
            sampler={"name": name},
            shards=ShardsConfig(candidates=candidates.shape[1], records=COUNT),
        )
        write_plan(tmp_path / name, plan)
        records = []
        for index in range(COUNT):
            anchor = anchors[index]
            if labels is not None:
                anchor = replace(anchor, label=labels[index])
            records.append(Record(anchor, candidates[index]))
        write_shard(tmp_path / name, plan, 0, 0, records, dict)
        seal_if_complete(tmp_path / name, plan)
        return ShardSet(tmp_path / name)

    return make


def area_by_hand(values, right) -> float:
    """Return the share of pairs of a right and a wrong candidate in which the right one has more; a tie is a half."""
    more = (values[right][:, None] > values[~right][None]).mean()
    ties = (values[right][:, None] == values[~right][None]).mean()
    return float(more + ties / 2)


def few_of(labels, per_class=4) -> list[int | None]:
    """Keep a few labels of every class; the others are missing, in both ways that sources tell it."""
    kept: list[int | None] = []
    for index, label in enumerate(labels.tolist()):
        seen = (labels[:index] == label).sum()
        missing = None if index % 2 else -1
        kept.append(label if seen < per_class else missing)
    return kept


def test_areas_are_those_of_all_pairs(set_of, pixels, anchors, images):
    labels = anchors.labels()
    quality = measure_quality(set_of(planted(images, labels)), pixels, PretrainConfig())
    right = quality.scores["agreement"] == 1
    assert right[:, :2].mean() > 0.95 and right[:, 3].mean() < 0.2  # as they were planted
    assert list(quality.facts.auroc) == LABEL_FREE
    for name in LABEL_FREE:
        lower = name in ("anchor_rank", "nearest_train")
        values = -quality.scores[name] if lower else quality.scores[name]
        assert quality.facts.auroc[name] == pytest.approx(area_by_hand(values, right), abs=1e-9)
    assert quality.facts.auroc["cosine"] > 0.8 and quality.facts.auroc["margin"] > 0.8
    assert quality.facts.labelled_anchors == COUNT


def test_copies_have_rank_one_and_other_anchors_have_not(set_of, pixels, anchors, images):
    scores = measure_quality(
        set_of(planted(images, anchors.labels())), pixels, PretrainConfig()
    ).scores
    assert (scores["anchor_rank"][:, 0] == 1).all() and (scores["margin"][:, 0] > 0).all()
    assert (scores["anchor_rank"][:, 2:] > 1).all() and (scores["margin"][:, 2:] < 0).all()
    margins = scores["cosine"] - scores["nearest_train"]
    np.testing.assert_array_equal(scores["margin"], margins)


def test_few_labels_judge_their_own_anchors_alone(set_of, pixels, anchors, images):
    labels = anchors.labels()
    few = few_of(labels)
    known = np.array([label is not None and label >= 0 for label in few])
    shards = set_of(planted(images, labels), few)
    quality = measure_quality(shards, pixels, PretrainConfig())
    scores, facts = quality.scores, quality.facts
    assert 10 <= known.sum() <= 40 and facts.labelled_anchors == known.sum()

    # Measures of labels: of those anchors, by a probe that saw no other
    for name in ("agreement", "label_probability"):
        assert np.array_equal(np.isnan(scores[name]), np.repeat(~known[:, None], 4, axis=1))
    assert scores["agreement"][known][:, 0].mean() > 0.95
    assert scores["agreement"][known][:, 3].mean() < 0.3
    assert facts.means["agreement"] == pytest.approx(scores["agreement"][known].mean())
    right = scores["agreement"][known] == 1
    for name, sign in (("cosine", 1), ("anchor_rank", -1)):
        by_hand = area_by_hand(sign * scores[name][known], right)
        assert facts.auroc[name] == pytest.approx(by_hand, abs=1e-9)

    # All others: as without a label
    none = measure_quality(
        set_of(planted(images, labels), [None] * COUNT, "none"), pixels, PretrainConfig()
    )
    for name in LABEL_FREE:
        assert np.array_equal(none.scores[name], scores[name])
    assert list(none.scores) == LABEL_FREE and none.facts.auroc == {}
    assert not {"auroc", "auroc_error", "labelled_anchors", "probe_top1"} & set(
        none.facts.content()
    )


def test_the_probe_knows_the_labelled_anchors_only(set_of, pixels, anchors, images):
    """A class without a label is one that the probe cannot name, and numbers need not be consecutive."""
    labels = anchors.labels()
    known = [int(label) * 10 + 3 if label in (1, 2) else None for label in labels]
    quality = measure_quality(set_of(planted(images, labels), known), pixels, PretrainConfig())
    assert quality.facts.labelled_anchors == np.isin(labels, (1, 2)).sum()
    assert quality.scores["agreement"][np.isin(labels, (1, 2)), 0].mean() > 0.95


def test_there_is_no_area_where_all_are_right(set_of, pixels, anchors, images):
    copies = np.stack([images, images], axis=1)
    facts = measure_quality(set_of(copies), pixels, PretrainConfig()).facts
    assert facts.means["agreement"] == 1
    assert facts.auroc == {} and facts.labelled_anchors == COUNT


def test_areas_leave_out_what_is_not_known():
    nan = np.nan
    scores = {
        "agreement": np.array([[1, 0, nan], [1, 0, nan]]),
        "cosine": np.array([[0.9, 0.1, 0.5], [0.3, 0.3, 0.2]]),
        "anchor_rank": np.array([[1, 7, 1], [2, 1, 1]]),
        "label_probability": np.array([[1, 0, nan], [1, 0, nan]]),
        "margin": np.array([[0.9, nan, nan], [0.3, nan, nan]]),
    }
    # right 0.9, 0.3; wrong 0.1, 0.3: three pairs of four and a tie. Ranks: right 1, 2; wrong 7, 1: two and a tie
    areas = {name: found.area for name, found in areas_under_roc(scores).items()}
    assert areas == {"cosine": 3.5 / 4, "anchor_rank": 2.5 / 4}
    assert areas_under_roc({"cosine": scores["cosine"]}) == {}


def test_the_error_is_that_of_resampled_anchors():
    """Candidates of an anchor are alike, and so tell less than as many of different anchors."""
    generator = np.random.default_rng(0)
    anchors, candidates = 150, 6
    easy, known = generator.normal(size=(2, anchors, 1))
    cosine = easy + generator.normal(size=(anchors, candidates)) / 2
    right = easy + known + generator.normal(size=cosine.shape) / 2 > 0
    found = areas_under_roc({"agreement": right.astype(float), "cosine": cosine})["cosine"]

    def resampled(groups) -> float:
        chosen = generator.integers(0, len(groups), len(groups))
        values, are_right = groups[chosen, :, 0].ravel(), groups[chosen, :, 1].ravel() > 0
        return area_by_hand(values, are_right)

    together = np.stack([cosine, right], axis=2)
    alone = together.reshape(-1, 1, 2)
    by_anchor = np.std([resampled(together) for _ in range(400)])
    by_candidate = np.std([resampled(alone) for _ in range(100)])
    assert found.error == pytest.approx(by_anchor, rel=0.12)
    assert found.error > 1.5 * by_candidate


def test_an_area_that_one_anchor_decides_has_no_error():
    scores = {"agreement": np.array([[1, 0], [0, 0]]), "cosine": np.array([[0.9, 0.1], [0.3, 0.2]])}
    found = areas_under_roc(scores)["cosine"]
    assert found.area == 1 and found.error is None


def test_sets_with_few_labels_are_compared_by_these(set_of, pixels, anchors, images):
    labels = anchors.labels()
    few = few_of(labels)
    known = np.array([label is not None and label >= 0 for label in few])
    good = planted(images, labels)
    bad = good[:, [3, 3, 3, 3]]
    sets = [set_of(good, few, "good"), set_of(bad, few, "bad")]
    found = compare_quality(*sets, pixels, resamples=100)
    row = found.measures["label agreement"]
    measured = [measure_quality(shards, pixels, PretrainConfig()) for shards in sets]
    by_hand = [100 * quality.scores["agreement"][known].mean() for quality in measured]
    assert found.labelled_anchors == known.sum()
    assert (row.reference, row.other) == pytest.approx(tuple(by_hand), abs=1e-4)
    assert row.interval[0] < row.difference < row.interval[1] < 0 and not row.within


def test_the_command_says_and_writes_the_areas(clsp, set_of, encoder_folder, anchors, images):
    labels = anchors.labels()
    root = set_of(planted(images, labels), few_of(labels)).root
    done = clsp("shards", "score", root, "--encoder", encoder_folder, "--name", "tiny")
    assert done.returncode == 0, done.stderr
    facts = json.loads(quality_path(root, "tiny").read_text())["result"]
    scores = read_scores(root / "scores" / "tiny.parquet", COUNT)
    known = np.isfinite(scores["agreement"])
    assert facts["labelled_anchors"] == known.all(axis=1).sum() < COUNT
    by_hand = area_by_hand(-scores["anchor_rank"][known], scores["agreement"][known] == 1)
    assert facts["auroc"]["anchor_rank"] == pytest.approx(by_hand, abs=1e-6)
    lines = [line.split() for line in done.stdout.splitlines()]
    error = f"{facts['auroc_error']['anchor_rank']:.3f}"
    assert ["anchor", "rank", f"{by_hand:.3f}", "±", error, "lower", "is", "better"] in lines
    assert f"candidates of {facts['labelled_anchors']} labelled anchors" in done.stdout
    assert clsp("shards", "verify", root, "--deep").returncode == 0


def test_scores_of_another_encoder_name_both(clsp, set_of, encoder_folder, tmp_path, images):
    root = set_of(images[:, None]).root
    score = ("shards", "score", root, "--name", "tiny", "--encoder")
    assert clsp(*score, encoder_folder).returncode == 0
    before = (root / "scores" / "tiny.parquet").read_bytes()

    # The same weights in another place are the same encoder
    shutil.copytree(encoder_folder, tmp_path / "moved")
    moved = clsp(*score, tmp_path / "moved")
    assert moved.returncode == 0 and "are there already" in moved.stdout

    # Another model is not
    other = clsp(*score, "resnet18.a1_in1k")
    expected = f"is by the encoder {encoder_folder} (SHA-256 {encoder_digest(encoder_folder)[:12]}…"
    assert other.returncode == 2 and len(other.stderr.strip().splitlines()) == 1
    assert expected in other.stderr and "found resnet18.a1_in1k;" in other.stderr
    assert "choose another --name" in other.stderr

    # Nor are other settings
    with_recipe = ("--recipe", "digits", "--set", "anchors.limit=120")
    otherwise = clsp(*score, encoder_folder, *with_recipe)
    assert otherwise.returncode == 2 and "another way (without a recipe);" in otherwise.stderr
    again = ("shards", "score", root, "--name", "other", "--encoder", encoder_folder, *with_recipe)
    assert clsp(*again).returncode == 0
    assert "(with a recipe, and none is given now);" in clsp(*again[:7]).stderr
    assert "(recipe.anchors.limit: 120 there, 90 here);" in (
        clsp(*again[:-1], "anchors.limit=90").stderr
    )

    # Measures of the whole set that are lost are not made again
    quality_path(root, "tiny").unlink()
    lost = clsp(*score, encoder_folder)
    assert lost.returncode == 2 and "does not hold the measures of the whole set" in lost.stderr
    assert (root / "scores" / "tiny.parquet").read_bytes() == before


def test_scores_of_fewer_candidates_are_not_taken_for_all(
    clsp, make_set, model_folder, encoder_folder, tmp_path
):
    root = make_set(tmp_path / "set", candidates=2)
    score = ("shards", "score", root, "--name", "tiny", "--encoder", encoder_folder)
    assert clsp(*score).returncode == 0
    extend = ("shards", "extend", root, "--candidates", 3, "--diffusion", model_folder)
    assert clsp(*extend).returncode == 0
    again = clsp(*score)
    assert again.returncode == 2
    assert "(of other candidates than the set has now); scores are never changed" in again.stderr
