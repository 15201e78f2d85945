"""Training and test images whose classes have other names, or names on one side only, in every evaluation."""

import json

import datasets
import pytest
from pictures import BLUE, GREEN, RED, encoded, many, parquet, picture

COLOURS = {"red": RED, "green": GREEN, "blue": BLUE}
"""The classes by what is right; a picture's class is told by its colour."""


def folders(root, names: dict[str, str], count: int = 6):
    """Write a folder of pictures for every class; `names` says what each colour's is called."""
    for colour, name in names.items():
        many(root / name, count, COLOURS[colour])
    return root


def numbered(path, order: list[str], count: int = 6):
    """Write a parquet file whose column `label` has the place of a picture's colour in `order`."""
    contents = []
    labels = []
    for label, colour in enumerate(order):
        contents += [encoded(picture(COLOURS[colour], number)) for number in range(count)]
        labels += [label] * count
    return parquet(path, contents, label=labels)


def with_names(path, order: list[str], count: int = 6):
    """Write such a file whose metadata says the names, in that order."""
    numbered(path, order, count)
    rows = datasets.Dataset.from_parquet(str(path))
    named = rows.cast_column("label", datasets.ClassLabel(names=order))  # type: ignore[union-attr]
    named.to_parquet(path)
    return path


@pytest.fixture(params=["linear-eval", "knn", "transfer"])
def evaluate(request, clsp, encoder_folder, tmp_path):
    """A function (train, test) that evaluates on these sources, each of one split, and gives run and accuracy."""
    command = request.param
    tried = iter(range(9))
    anchors = ("linear_eval.test_split=train", "linear_eval.epochs=30", "linear_eval.flip=false")
    few = ("linear_eval.lr=10", "linear_eval.milestones=[20]", "knn.k=[3]")
    shown = {"linear-eval": "top1", "knn": "k3", "transfer": "colours"}[command]

    def run(train, test):
        out = tmp_path / f"out-{next(tried)}"
        if command == "transfer":
            # One root with a split each, as a set is
            root = out.with_suffix(".set")
            root.mkdir()
            for split, source in (("train", train), ("test", test)):
                (root / f"{split}{source.suffix}").symlink_to(source)
            values = ("only=[colours]", f"sets.colours.path='{root}'", "l2=[0.01,1,3]")
            settings = [f"transfer.{value}" for value in values]
        else:
            settings = [f"anchors.path={train}", f"linear_eval.test_path={test}", *anchors, *few]

        arguments = [f"--set={setting}" for setting in settings]
        common = (command, "--recipe", "digits", "--checkpoint", encoder_folder)
        done = clsp(*common, *arguments, "--out", out)
        if done.returncode:
            assert done.stderr.count("\n") == 1, done.stderr
            return done, None

        (path,) = out.glob("*.json")
        return done, json.loads(path.read_text())["result"][shown]

    return run


SAME = {colour: colour for colour in COLOURS}


def test_other_names_are_refused_by_their_names(evaluate, tmp_path):
    train = folders(tmp_path / "train", {**SAME, "green": "grün"})
    done, _ = evaluate(train, folders(tmp_path / "test", SAME))
    assert done.returncode == 2
    assert "has the class 'green', which is not among blue, grün, red" in done.stderr

    # None in common, and as many
    words = {"red": "rot", "green": "vert", "blue": "azul"}
    done, _ = evaluate(train, folders(tmp_path / "others", words))
    assert done.returncode == 2
    expected = "has the classes 'azul', 'rot', 'vert', which are not among blue, grün, red"
    assert expected in done.stderr


def test_a_class_that_only_one_side_has_is_refused_by_its_name(evaluate, tmp_path):
    two = folders(tmp_path / "two", {"red": "red", "blue": "blue"})
    three = folders(tmp_path / "three", SAME)
    done, _ = evaluate(two, three)
    assert done.returncode == 2
    assert "has the class 'green', which is not among blue, red" in done.stderr

    done, _ = evaluate(three, two)
    assert done.returncode == 2
    assert "test images lack the classes green, expected all 3" in done.stderr


def test_the_same_names_in_another_order_are_matched(evaluate, tmp_path, caplog):
    train = with_names(tmp_path / "a.parquet", ["red", "green", "blue"])
    test = with_names(tmp_path / "b.parquet", ["green", "blue", "red"])
    assert evaluate(train, test)[1] == 100
    assert not caplog.text

    # By numbers it would be another figure
    by_number = numbered(tmp_path / "c.parquet", ["green", "blue", "red"])
    assert evaluate(numbered(tmp_path / "d.parquet", ["red", "green", "blue"]), by_number)[1] == 0


def test_names_that_other_splits_alone_have_are_no_matter(evaluate, tmp_path):
    """Of thousand names in the metadata a part is in use, as in ImageNet-100."""
    train = with_names(tmp_path / "a.parquet", ["red", "green", "blue"])
    more = with_names(tmp_path / "b.parquet", ["red", "green", "blue"])
    names = ["cyan", "blue", "violet", "green", "red"]
    rows = datasets.Dataset.from_parquet(str(more))
    words = rows.features["label"].names  # type: ignore[union-attr]
    labels = [names.index(words[label]) for label in rows["label"]]  # type: ignore[index]
    rows = rows.remove_columns("label").add_column("label", labels)  # type: ignore
    rows.cast_column("label", datasets.ClassLabel(names=names)).to_parquet(more)
    assert evaluate(train, more)[1] == evaluate(more, train)[1] == 100


def test_numbers_and_names_are_compared_by_order_and_that_is_said(evaluate, tmp_path, caplog):
    numbers = numbered(tmp_path / "a.parquet", ["red", "green", "blue"])
    names = with_names(tmp_path / "b.parquet", ["red", "green", "blue"])
    for train, test in ((numbers, names), (names, numbers)):
        caplog.clear()
        assert evaluate(train, test)[1] == 100
        (line,) = caplog.messages
        assert "has class numbers without names" in line
        assert "takes 0 for red, 1 for green, 2 for blue" in line


def test_names_that_are_numbers_are_compared_with_numbers(evaluate, tmp_path, caplog):
    """In the metadata 2 comes first, and 01 is 1."""
    numbers = numbered(tmp_path / "a.parquet", ["red", "green", "blue"])
    names = with_names(tmp_path / "b.parquet", ["blue", "red", "green"])
    rows = datasets.Dataset.from_parquet(str(names))
    feature = datasets.ClassLabel(names=["2", "0", "01"])
    rows.cast_column("label", feature).to_parquet(names)  # type: ignore[union-attr]
    assert evaluate(numbers, names)[1] == evaluate(names, numbers)[1] == 100
    assert not caplog.text
