import io
from pathlib import Path

import datasets
import numpy as np
import pytest
from clsp.core import InputError
from clsp.shards import AnchorsConfig, ImageSource
from PIL import Image
from sklearn.datasets import load_digits


def encoded(image: np.ndarray, image_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, image_format)
    return buffer.getvalue()


def parquet(path: Path, contents: list[bytes], labels: list | None = None) -> Path:
    columns: dict = {"img": [{"bytes": content, "path": None} for content in contents]}
    if labels:
        columns["label"] = labels
    datasets.Dataset.from_dict(columns).to_parquet(path)
    return path


def random_images(count: int, size: tuple[int, ...] = (12, 12, 3)) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, *size), dtype=np.uint8))


def test_digits_split_and_levels():
    train, test = ImageSource(AnchorsConfig()), ImageSource(AnchorsConfig(split="test"))
    grey, labels = load_digits(return_X_y=True)
    assert (len(train), len(test)) == (1438, 359)
    assert np.array_equal(test.labels(), labels[4::5])
    expected = np.rint(grey[5].reshape(8, 8) * 255 / 16)
    assert all(np.array_equal(train[4].image[..., channel], expected) for channel in range(3))
    assert train[4].key == "train_00000004" and train.size == 8


def test_parquet_of_encoded_images(tmp_path):
    images = random_images(5)
    path = parquet(tmp_path / "x.parquet", [encoded(image) for image in images], [4, 3, 2, 1, 0])
    anchors = ImageSource(AnchorsConfig(path=str(path), limit=4))
    assert len(anchors) == 4 and anchors.labels().tolist() == [4, 3, 2, 1]
    assert all(
        np.array_equal(anchor.image, image) for anchor, image in zip(anchors, images, strict=False)
    )


def test_folder_of_images_and_folder_of_parquet_splits(tmp_path):
    images = random_images(4)
    for number, image in enumerate(images):
        folder = tmp_path / "photos" / "train" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{number}.png")
    anchors = ImageSource(AnchorsConfig(path=str(tmp_path / "photos")))
    assert sorted(anchors.labels().tolist()) == [0, 0, 1, 1]
    (tmp_path / "both").mkdir()
    for split, count in (("train", 3), ("test", 2)):
        parquet(
            tmp_path / "both" / f"{split}.parquet", [encoded(image) for image in images[:count]]
        )
    assert [
        len(ImageSource(AnchorsConfig(path=str(tmp_path / "both"), split=split)))
        for split in ("train", "test")
    ] == [
        3,
        2,
    ]


def test_grey_is_replicated_and_geometry_is_fixed(tmp_path):
    wide = np.zeros((10, 20), np.uint8)
    wide[:, 5:15] = 200
    path = str(parquet(tmp_path / "x.parquet", [encoded(wide)]))
    cropped = ImageSource(AnchorsConfig(path=path, size=10))[0].image
    assert cropped.shape == (10, 10, 3) and (cropped == 200).all()
    squashed = ImageSource(AnchorsConfig(path=path, size=10, resize="squash"))[0].image
    assert squashed[:, 0].max() < 100
    with pytest.raises(InputError, match=r"set anchors\.size"):
        ImageSource(AnchorsConfig(path=path))


def test_digest_names_the_encoded_bytes_and_their_order(tmp_path):
    contents = [encoded(image) for image in random_images(3)]
    first = parquet(tmp_path / "a.parquet", contents)
    renamed = parquet(tmp_path / "b.parquet", contents, [1, 2, 3])
    reordered = parquet(tmp_path / "c.parquet", contents[::-1])
    digests = [
        ImageSource(AnchorsConfig(path=str(path))).digest for path in (first, renamed, reordered)
    ]
    assert digests[0] == digests[1] != digests[2]


def test_bad_sources_are_named(tmp_path):
    cases = {
        "does not exist": AnchorsConfig(path=str(tmp_path / "nowhere.parquet")),
        "not found on this machine or on the hub": AnchorsConfig(path="nobody/nothing"),
        "train and test": AnchorsConfig(split="validation"),
        "expected up to 64 printable": AnchorsConfig(split="train[:10%]é"),
    }
    for message, config in cases.items():
        with pytest.raises(InputError, match=message):
            ImageSource(config)
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(InputError, match="columns text; expected one that holds images"):
        ImageSource(AnchorsConfig(path=str(tmp_path / "text.parquet")))


def test_an_image_that_does_not_decode_is_named(tmp_path):
    good = encoded(random_images(1)[0])
    path = str(parquet(tmp_path / "x.parquet", [good, good[:40], good]))
    with pytest.raises(InputError, match="train_00000001.*does not decode"):
        ImageSource(AnchorsConfig(path=path))[1]


def test_16_bit_grey_keeps_its_upper_8_bits(tmp_path):
    grey = np.arange(144, dtype=np.uint16).reshape(12, 12) * 450
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    path = parquet(tmp_path / "x.parquet", [buffer.getvalue()])
    assert np.array_equal(ImageSource(AnchorsConfig(path=str(path)))[0].image[..., 0], grey >> 8)


def test_words_are_classes_and_blanks_are_none(tmp_path):
    cells = {"img": [{"bytes": encoded(random_images(1)[0]), "path": None}] * 3}
    datasets.Dataset.from_dict({**cells, "label": ["dog", "cat", None]}).to_parquet(
        tmp_path / "x.parquet"
    )
    anchors = ImageSource(AnchorsConfig(path=str(tmp_path / "x.parquet")))
    assert [anchor.label for anchor in anchors] == [1, 0, None]
    assert anchors.class_names == ("cat", "dog")
    with pytest.raises(InputError, match="without a label"):
        anchors.labels()


def test_classes_are_numbered_as_those_of_another_source(tmp_path):
    contents = [encoded(image) for image in random_images(3)]
    train, test = (
        ImageSource(AnchorsConfig(path=str(parquet(tmp_path / name, contents, labels))))
        for name, labels in (("train.parquet", ["a", "b", "c"]), ("test.parquet", ["c", "a", "c"]))
    )
    assert test.labels().tolist() == [1, 0, 1]
    test.use_classes(train.class_names)
    assert test.labels().tolist() == [2, 0, 2] and test[1].label == 0
    assert test.class_names == ("a", "b", "c")
    with pytest.raises(InputError, match="has the class 'b', which is not among a, c"):
        train.use_classes(("a", "c"))
