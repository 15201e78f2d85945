"""Which folders are splits and which are classes: by their names, and what is refused."""

import datasets
import pytest
from clsp.core import InputError
from clsp.shards.sources.layout import arrange
from pictures import BLUE, GREEN, RED, class_of, many, middle, opened, put

ANIMALS = ("cats", "dogs")


def paths(*folders: str, count: int = 2) -> list[str]:
    return sorted(f"{folder}/{number}.png" for folder in folders for number in range(count))


def splits_of(names: list[str], layout="auto") -> dict[str, int]:
    found = arrange(sorted(names), layout, "here")
    return {name: len(images.names) for name, images in found.splits.items()}


@pytest.mark.parametrize(
    ("train", "test", "asked"),
    [
        ("train", "test", ("train", "test")),
        ("Train", "TEST", ("train", "test")),
        ("training", "val", ("train", "validation")),
        ("train", "val", ("train", "val")),
        ("train2017", "val2017", ("train", "validation")),
        ("train_images", "test_images", ("train", "test")),
        ("training_set", "test_set", ("train", "test")),
        ("seg_train", "seg_test", ("train", "test")),
    ],
)
def test_folders_called_like_splits(tmp_path, train, test, asked):
    for folder, count in ((train, 3), (test, 2)):
        for animal in ANIMALS:
            many(tmp_path / folder / animal, count)
    for split, folder, count in zip(asked, (train, test), (6, 4), strict=True):
        images = opened(tmp_path, split=split)
        assert len(images) == count and images.class_names == ANIMALS
        assert images.source.describe(0) == f"{folder}/cats/00.png"


def test_train_in_train_and_test_in_test(tmp_path):
    """As archives unpack: seg_train/seg_train/buildings."""
    for split in ("seg_train", "seg_test"):
        for animal in ANIMALS:
            many(tmp_path / split / split / animal, 2)
    images = opened(tmp_path, split="test")
    assert images.labels().tolist() == [0, 0, 1, 1] and images.class_names == ANIMALS


def test_one_class_in_one_split_is_that_class(tmp_path):
    for animal in ANIMALS:
        many(tmp_path / "train" / animal, 2)
    many(tmp_path / "test" / "dogs", 2)
    assert opened(tmp_path, split="test").labels().tolist() == [1, 1]


def test_a_class_called_train_among_vehicles(tmp_path):
    for name, colour in (("bus", RED), ("car", GREEN), ("train", BLUE)):
        many(tmp_path / name, 5, colour)
    with pytest.raises(InputError, match=r"splits \(train\) beside others \(bus, car\).*layout"):
        opened(tmp_path)
    images = opened(tmp_path, layout="classes")
    assert len(images) == 15 and images.class_names == ("bus", "car", "train")
    assert middle(images, 14) == BLUE and images[14].label == 2


def test_a_class_called_train_inside_splits(tmp_path):
    """As in CIFAR-100."""
    for split, count in (("train", 5), ("test", 2)):
        for name in ("rocket", "tractor", "train"):
            many(tmp_path / split / name, count)
    train, test = (opened(tmp_path, split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (15, 6)
    assert train.class_names == test.class_names == ("rocket", "tractor", "train")
    assert all(name.startswith("train/") for name in class_of(train))


def test_a_file_called_train_is_an_image_like_others(tmp_path):
    many(tmp_path, 9)
    put(tmp_path / "train.png")
    put(tmp_path / "test_3.png")
    assert len(opened(tmp_path)) == 11


def test_classes_whose_names_have_such_a_word_are_classes(tmp_path):
    for name in ("train_station", "bus_stop", "test_tube"):
        many(tmp_path / name, 2)
    assert opened(tmp_path).class_names == ("bus_stop", "test_tube", "train_station")


def test_train_beside_train_is_refused(tmp_path):
    for name in ("train", "Train"):
        many(tmp_path / name, 2)
    with pytest.raises(InputError, match="Train and train, which mean the same split"):
        opened(tmp_path)


def test_of_two_folders_of_one_split_one_has_to_be_named(tmp_path):
    for name, count in (("train2014", 2), ("train2017", 3), ("val2017", 1)):
        many(tmp_path / name, count)
    with pytest.raises(InputError, match=r"train2014, train2017 .* all mean the split 'train'"):
        opened(tmp_path)
    assert len(opened(tmp_path, split="train2017")) == 3


def test_stl10(tmp_path):
    """Splits with classes beside one without."""
    many(tmp_path / "unlabeled", 9)
    for split in ("train", "test"):
        for name in ANIMALS:
            many(tmp_path / split / name, 5)
    unlabelled = opened(tmp_path, split="unlabeled")
    assert len(unlabelled) == 9 and unlabelled[0].label is None
    assert opened(tmp_path, split="train").labels().tolist() == [0] * 5 + [1] * 5
    with pytest.raises(InputError, match=r"splits test, train, unlabeled, found 'validation'"):
        opened(tmp_path, split="validation")


def test_wrapper_folders_are_stepped_over(tmp_path):
    for animal in ANIMALS:
        many(tmp_path / "data" / "images" / animal, 2)
    assert opened(tmp_path).class_names == ANIMALS
    wrapped = [f"set/data/{name}" for name in paths("train/cats", "train/dogs", "test/cats")]
    assert splits_of(wrapped) == {"test": 2, "train": 4}


def test_nested_folders_belong_to_the_outer_class(tmp_path):
    many(tmp_path / "cats" / "tabby", 2)
    many(tmp_path / "cats" / "siamese", 2)
    many(tmp_path / "dogs", 2)
    images = opened(tmp_path)
    assert images.class_names == ANIMALS and images.labels().tolist() == [0, 0, 0, 0, 1, 1]


def test_numbered_classes_in_the_order_of_numbers(tmp_path):
    for number in range(12):
        many(tmp_path / str(number), 1, (number * 20, 0, 0))
    images = opened(tmp_path)
    assert images.class_names == tuple(str(number) for number in range(12))
    assert all(middle(images, place)[0] == 20 * images[place].label for place in range(12))


def test_padded_numbers_are_numbers_and_mixed_names_are_texts(tmp_path):
    assert arrange(paths("09", "10", "2"), "auto", "here").class_names == ("2", "09", "10")
    assert arrange(paths("10", "2", "b"), "auto", "here").class_names == ("10", "2", "b")


def test_a_folder_of_one_class_has_no_classes(tmp_path):
    many(tmp_path / "cats", 3)
    images = opened(tmp_path)
    assert len(images) == 3 and images.class_names is None and images[0].label is None


def test_a_stray_file_beside_classes_is_named(tmp_path):
    for split in ("train", "test"):
        for name in ANIMALS:
            many(tmp_path / split / name, 5)
    put(tmp_path / "train" / "stray.png")
    with pytest.raises(InputError, match=r"1 of 11 .* outside the folders of classes.*stray\.png"):
        opened(tmp_path)
    images = opened(tmp_path, on_error="skip")
    assert images.labels().tolist() == [0] * 5 + [1] * 5
    assert len(opened(tmp_path, split="test", on_error="skip")) == 10


def test_a_stray_file_beside_splits_is_named(tmp_path):
    for split in ("train", "test"):
        many(tmp_path / split, 5)
    put(tmp_path / "stray.png")
    with pytest.raises(InputError, match="outside the folders of splits, such as stray.png"):
        opened(tmp_path)


def test_the_recipe_decides_what_folders_are(tmp_path):
    for name in ("left", "right"):
        many(tmp_path / name / "cats", 1)
        many(tmp_path / name / "dogs", 2)
    assert opened(tmp_path, layout="classes").class_names == ("left", "right")
    assert opened(tmp_path, layout="flat").class_names is None
    splits = opened(tmp_path, layout="splits", split="right")
    assert splits.labels().tolist() == [0, 1, 1] and splits.key(0) == "right_00000000"


def test_a_split_of_a_folder_without_splits(tmp_path):
    for name in ANIMALS:
        many(tmp_path / "photos" / name, 2)
    with pytest.raises(InputError, match=r"no split 'test': its folders are taken for classes"):
        opened(tmp_path / "photos", split="test")
    many(tmp_path / "mine" / "test", 3)
    assert len(opened(tmp_path / "mine" / "test", split="test")) == 3  # it is that split itself


@pytest.mark.parametrize(
    "folders",
    [
        ("cats", "dogs"),
        ("Zebra", "ant", "cat-1", "cat"),
        ("train/cats", "train/dogs", "test/cats", "test/dogs"),
        ("train",),
        (".",),
        ("train/b", "train/a", "validation/a", "validation/b"),
    ],
)
def test_ordinary_folders_are_read_as_datasets_reads_them(tmp_path, folders):
    """So a set that was begun with an earlier version, which used it, can go on."""
    for place, folder in enumerate(folders):
        many(tmp_path / folder, 3 + place)
        put(tmp_path / folder / "A2.png")
        put(tmp_path / folder / "a10.jpg")

    datasets.disable_progress_bars()
    for split in ("train", "test", "validation"):
        if split != "train" and not any(folder.startswith(split) for folder in folders):
            continue
        theirs = datasets.load_dataset(str(tmp_path), split=split)
        theirs = theirs.cast_column("image", datasets.Image(decode=False))
        ours = opened(tmp_path, split=split)
        files = [str(tmp_path / ours.source.describe(index)) for index in range(len(ours))]
        assert files == [cell["path"] for cell in theirs["image"]]
        labels = theirs["label"][:] if "label" in theirs.features else [None] * len(ours)
        assert [anchor.label for anchor in ours] == labels
        if any(label is not None for label in labels):
            assert list(ours.class_names or ()) == theirs.features["label"].names
        assert not ours.source.label_rule
