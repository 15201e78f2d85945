"""Public data sets, as they are unpacked: tiny copies of their folders, and what is said of them."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest
from clsp.core import InputError
from conftest import REPOSITORY
from pictures import class_of, many, opened, picture, put
from torchvision.datasets import CIFAR10

PAGE = REPOSITORY / "docs" / "own-images.md"


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def code_of_page(containing: str) -> str:
    """The only block of Python on the page with this word."""
    (code,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if containing in block
    )
    return code


def test_imagenet(clsp, tmp_path):
    data = tmp_path / "ILSVRC" / "Data" / "CLS-LOC"
    for synset in ("n01440764", "n01443537"):
        for number in range(3):
            put(data / "train" / synset / f"{synset}_{number}.JPEG", picture(number=number))
    for number in range(4):
        put(data / "val" / f"ILSVRC2012_val_{number:08d}.JPEG")
    write(tmp_path / "ILSVRC" / "ImageSets" / "CLS-LOC" / "val.txt")
    write(tmp_path / "LOC_val_solution.csv", "ImageId,PredictionString\n")

    for root in (tmp_path, data):
        told = clsp("images", root)
        assert told.returncode == 0 and "6 images: n01440764 3, n01443537 3" in told.stdout
        assert re.search(r"val.*: 4 images, no classes", told.stdout)
        assert "lists of splits" not in told.stdout


def test_food_101_and_cub(clsp, tmp_path):
    """Their lists of splits are not read, which must not put test images into training silently."""
    lists = {
        "food-101": ("meta/train.txt", "meta/test.txt", "meta/test.json", "meta/classes.txt"),
        "CUB_200_2011": ("train_test_split.txt", "images.txt", "classes.txt"),
    }
    for name, files in lists.items():
        for label in ("001.a", "002.b"):
            many(tmp_path / name / "images" / label, 2)
        for file in files:
            write(tmp_path / name / file)

        told = clsp("images", tmp_path / name)
        assert told.returncode == 0 and "2 classes from folders: 001.a 2, 002.b 2" in told.stdout
        named = re.search("note: (.*): called like lists of splits, which are not", told.stdout)
        expected = sorted(file for file in files if "test" in file)
        assert named and named[1].split(", ") == expected, told.stdout


def test_captions_are_no_lists_of_splits(clsp, tmp_path):
    many(tmp_path / "a", 2)
    many(tmp_path / "b", 2)
    put(tmp_path / "b" / "test_1.png")
    write(tmp_path / "b" / "test_1.txt", "a red square")
    write(tmp_path / "train_log.txt")
    assert "lists of splits" not in clsp("images", tmp_path).stdout


def test_oxford_pets(clsp, tmp_path, monkeypatch):
    root = tmp_path / "oxford-iiit-pet"
    lists = {"trainval": [], "test": []}
    for breed in ("Abyssinian", "american_bulldog"):
        for number in range(4):
            name = f"{breed}_{number}"
            put(root / "images" / f"{name}.jpg", picture(number=number))
            put(root / "annotations" / "trimaps" / f"{name}.png")
            lists["test" if number == 3 else "trainval"].append(f"{name} 1 1 1")
    for listed, lines in lists.items():
        write(root / "annotations" / f"{listed}.txt", "\n".join(lines) + "\n")

    refused = clsp("images", root)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "folder images beside others (annotations)" in refused.stderr
    assert opened(root, layout="classes").class_names == ("annotations", "images")

    flat = clsp("images", root / "images")
    assert flat.returncode == 0 and "no classes, which folders or a metadata.csv" in flat.stdout

    # What the page advises
    monkeypatch.chdir(tmp_path)
    exec(code_of_page("oxford-iiit-pet"), {})
    train = opened(tmp_path / "pets")
    test = opened(tmp_path / "pets", split="test")
    assert (len(train), len(test)) == (6, 2)
    assert class_of(test) == {
        "test/Abyssinian/Abyssinian_3.jpg": "Abyssinian",
        "test/american_bulldog/american_bulldog_3.jpg": "american_bulldog",
    }


def test_masks_beside_images_in_every_split(tmp_path):
    for split in ("train", "val"):
        many(tmp_path / split / "images", 2)
        many(tmp_path / split / "masks", 2)
    with pytest.raises(InputError, match=r"folder images beside others \(masks\).*layout=splits"):
        opened(tmp_path)
    assert opened(tmp_path, layout="splits").class_names == ("images", "masks")


def test_stl_10_as_its_recipe_says(clsp, tmp_path):
    many(tmp_path / "unlabeled", 3)
    for split in ("train", "test"):
        for name in ("airplane", "bird"):
            many(tmp_path / split / name, 2)
    told = clsp("images", tmp_path, "--recipe", "stl10")
    assert told.returncode == 0 and "split unlabeled: 3 images" in told.stdout
    assert "unlabeled: 3 images, no classes" in told.stdout
    assert "test: 4 images: airplane 2, bird 2" in told.stdout


@pytest.mark.parametrize(
    "file",
    [
        "cifar-10-batches-py/data_batch_1",
        "cifar-100-python/train",
        "train",
        "MNIST/raw/t10k-images-idx3-ubyte",
        "stl10_binary/train_X.bin",
        "arrays/images.npy",
    ],
)
def test_arrays_are_said_to_be_no_images(clsp, tmp_path, file):
    write(tmp_path / file, "array")
    write(tmp_path / "readme.html")
    found = clsp("images", tmp_path)
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert f"no arrays such as {file}: save their images as files" in found.stderr


def test_torchvisions_cifar_becomes_folders(tmp_path, monkeypatch):
    folder = tmp_path / "cifar" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    for name in names:
        batch = {"data": images.reshape(2, 3072), "labels": [1, 0]}
        (folder / name).write_bytes(pickle.dumps(batch))
    meta = {"label_names": ["airplane", "automobile"]}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta))

    # The check of the downloaded files' digests
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    monkeypatch.chdir(tmp_path)
    exec(code_of_page("CIFAR10"), {})
    test = opened(tmp_path / "cifar10", split="test")
    assert class_of(test) == {
        "test/airplane/00001.png": "airplane",
        "test/automobile/00000.png": "automobile",
    }
    assert np.array_equal(test[0].image, images[1].transpose(1, 2, 0))
    assert len(opened(tmp_path / "cifar10")) == 10
