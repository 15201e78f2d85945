"""Transfer on small image folders that have the real sets' splits."""

import json

import numpy as np
import pytest
import torch
from clsp.evaluate import TransferConfig, load_encoder
from clsp.evaluate.config import KNOWN_SETS
from clsp.train import PretrainConfig, build_backbone
from clsp.train.backbone import save_backbone
from PIL import Image
from sklearn.linear_model import LogisticRegression


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    config = PretrainConfig(backbone_kwargs={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]})
    torch.manual_seed(0)
    save_backbone(build_backbone(config), config, 16, folder)
    return folder


def write_images(folder, splits: dict[str, int], classes: int = 3):
    """Noisy images of a colour per class, of sizes other than the encoder's, in the layout of an image folder."""
    generator = np.random.default_rng(0)
    colours = generator.integers(60, 200, (classes, 3))
    for split, count in splits.items():
        for label in range(classes):
            directory = folder / split / f"class_{label}"
            directory.mkdir(parents=True)
            for number in range(count):
                noise = generator.normal(0, 40, (24, 20, 3))
                image = np.clip(colours[label] + noise, 0, 255).astype(np.uint8)
                Image.fromarray(image).save(directory / f"{number}.png")
    return folder


def transfer(clsp, checkpoint, out, *values):
    chosen = [f"--set=transfer.{value}" for value in values]
    return clsp("transfer", "--recipe", "digits", "--checkpoint", checkpoint, "--out", out, *chosen)


@pytest.mark.parametrize("name", sorted(KNOWN_SETS))
def test_every_known_set_with_its_own_splits_and_metric(clsp, checkpoint, tmp_path, name):
    known = TransferConfig().chosen[name]
    splits = {split: 10 for split in (known.train, known.validation, known.test) if split}
    if not known.test:
        splits[known.train] = 40  # 30 of each class are drawn
    folder = write_images(tmp_path / "images", splits)
    settings = [f"only=['{name}']", f"sets.{name}.path='{folder}'", f"sets.{name}.label='label'"]
    done = transfer(clsp, checkpoint, tmp_path, *settings)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "transfer.json").read_text())
    found = content["sets"][name]
    assert found["metric"] == (
        "mean_per_class" if name in ("aircraft", "pets", "caltech101", "flowers102") else "top1"
    )
    assert content["result"] == {name: found[found["metric"]]} and found[found["metric"]] > 60
    validation = 30 if known.validation else (18 if not known.test else 6)
    assert found["images"] == {
        "train": 90 - 18 if not known.test else 30 - (0 if known.validation else 6),
        "validation": validation,
        "test": 30,
    }


@pytest.mark.slow
def test_a_further_set_by_lines_of_toml_and_a_resume(clsp, checkpoint, tmp_path):
    for name in ("first", "second"):
        write_images(tmp_path / name, {"train": 8, "test": 4})
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        '[transfer]\nonly = ["first", "second"]\nl2 = [1e-2, 1e2, 5]\n'
        f'[transfer.sets.first]\npath = "{tmp_path / "first"}"\n'
        f'[transfer.sets.second]\npath = "{tmp_path / "second"}"\nmetric = "mean_per_class"\n'
    )
    command = ("transfer", "--recipe", recipe, "--checkpoint", checkpoint, "--out", tmp_path)
    assert clsp(*command, "--set=transfer.only=['first']").returncode == 0
    done = clsp(*command)
    assert (
        done.returncode == 0
        and "first:" not in done.stdout
        and "second: mean_per_class" in done.stdout
    )
    assert set(json.loads((tmp_path / "transfer.json").read_text())["result"]) == {
        "first",
        "second",
    }
    assert clsp(*command, "--set=transfer.only=[second]").returncode == 0
    assert set(json.loads((tmp_path / "transfer.json").read_text())["result"]) == {
        "first",
        "second",
    }  # nothing is lost
    again = clsp(*command, "--set=transfer.l2=[1e-2,1e2,4]")
    assert "first:" in again.stdout  # another protocol: nothing of the earlier one counts
    (tmp_path / "transfer.json").write_text("{damaged")
    assert "first:" in clsp(*command).stdout


def test_test_labels_never_influence_the_choice(checkpoint, tmp_path):
    from clsp.evaluate import Features
    from clsp.evaluate.probes.transfer import evaluate_transfer, open_splits, transfer_features

    folder = write_images(tmp_path / "images", {"train": 20, "test": 20}, classes=4)
    config = TransferConfig(sets={"mine": {"path": str(folder)}}, only=("mine",), l2=(1e-2, 1e3, 6))
    encoder = load_encoder(checkpoint, "no")
    splits = open_splits("mine", config.chosen["mine"], encoder.size)
    train, validates, test = transfer_features(encoder, "mine", splits)
    shuffled = Features(test.plain_NF, None, test.labels_N.flip(0))
    real, other = (
        evaluate_transfer(train, validates, one, config, "top1") for one in (test, shuffled)
    )
    assert real["chosen"] == other["chosen"] and real["top1"] > other["top1"]


def test_the_choice_and_the_refit_are_scikit_learns(checkpoint, tmp_path):
    from clsp.evaluate.probes.transfer import evaluate_transfer, open_splits, transfer_features

    folder = write_images(tmp_path / "images", {"train": 20, "test": 20}, classes=4)
    config = TransferConfig(sets={"mine": {"path": str(folder)}}, only=("mine",), l2=(1e-2, 1e3, 6))
    encoder = load_encoder(checkpoint, "no")
    splits = open_splits("mine", config.chosen["mine"], encoder.size)
    train, validates, test = transfer_features(encoder, "mine", splits)
    found = evaluate_transfer(train, validates, test, config, "top1")
    x, y = train.plain_NF.numpy(), train.labels_N.numpy()
    scores = {
        l2: LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-6)
        .fit(x[~validates], y[~validates])
        .score(x[validates], y[validates])
        for l2 in config.strengths
    }
    assert scores[found["chosen"]["l2"]] == max(scores.values())
    refit = LogisticRegression(C=1 / found["chosen"]["l2"], max_iter=5000, tol=1e-6).fit(x, y)
    assert found["top1"] == pytest.approx(100 * refit.score(test.plain_NF, test.labels_N), abs=1.3)


@pytest.mark.parametrize(
    ("splits", "settings", "message"),
    [
        ({"train": 5, "test": 5}, ["sets.mine.validation=dev"], "split 'dev' as its recipe says"),
        ({"train": 1, "test": 5}, [], "one training image"),
        ({"train": 5}, ["sets.mine.test=''", "sets.mine.per_class=5"], "leaves no test"),
        ({"train": 5}, ["sets.mine.test=''"], "either a test split or per_class"),
        (
            {"train": 5, "test": 2},
            ["sets.mine.label=colour"],
            "no column 'colour'",
        ),
        ({"train": 5, "test": 2}, ["only=['other']"], "only names 'other'"),
        (
            {"train": 5, "test": 2},
            ["sets.mine.pth=x"],
            r"sets.mine.pth: Extra inputs are not permitted, known",
        ),
        ({"train": 5, "test": 2}, ["sets.mine.validation=test"], "must be different ones"),
    ],
)
def test_sets_that_cannot_be_used_are_refused_in_one_line(
    clsp, checkpoint, tmp_path, splits, settings, message
):
    folder = write_images(tmp_path / "images", splits)
    done = transfer(
        clsp, checkpoint, tmp_path, f"sets.mine.path='{folder}'", "only=['mine']", *settings
    )
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "transfer.json").exists()


def test_a_class_that_test_lacks_is_refused(clsp, checkpoint, tmp_path):
    folder = write_images(tmp_path / "images", {"train": 5, "test": 3})
    for image in (folder / "test" / "class_1").iterdir():
        image.unlink()
    done = transfer(clsp, checkpoint, tmp_path, f"sets.mine.path='{folder}'", "only=['mine']")
    assert done.returncode == 2 and "mine" in done.stderr
