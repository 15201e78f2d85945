"""Data files and data sets that `datasets` reads: columns of classes, splits by names, and what is refused."""

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clsp.core import InputError
from clsp.shards import AnchorsConfig
from clsp.shards.sources import huggingface
from pictures import colours, encoded, many, middle, opened, parquet, picture, webdataset_tar


@pytest.mark.parametrize(
    ("cells", "labels", "names"),
    [
        (["cat", "dog", "cat"], [0, 1, 0], ("cat", "dog")),
        (["cat", None, ""], [0, None, None], ("cat",)),
        ([2.0, 0.0, None], [2, 0, None], None),
        ([True, False, True], [1, 0, 1], ("false", "true")),
        ([4, 0, 4], [4, 0, 4], None),
    ],
)
def test_what_a_column_of_classes_may_hold(tmp_path, cells, labels, names):
    images = opened(parquet(tmp_path / "x.parquet", colours(3), label=cells))
    assert [anchor.label for anchor in images] == labels and images.class_names == names


BYTES = {"pandas": pa.binary(), "polars": pa.large_binary(), "new polars": pa.binary_view()}


def table(path, **columns):
    """Write a parquet file without a word of `datasets` in it."""
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("kind", BYTES)
def test_plain_bytes_are_images_if_they_decode(tmp_path, kind):
    cells = pa.array([None, *colours(4)], BYTES[kind])
    tokens = pa.array([b"no image"] * 5)
    path = table(tmp_path / "x.parquet", hash=tokens, data=cells, label=list("abcba"))
    images = opened(path, size=8)
    assert len(images) == 5 and middle(images, 4) == (60, 0, 0)
    assert images.labels().tolist() == [0, 1, 2, 1, 0]

    # What an image is does not depend on how it is stored
    theirs = opened(parquet(tmp_path / "y.parquet", colours(4)))
    assert [anchor.digest for anchor in images[1:]] == [anchor.digest for anchor in theirs]


@pytest.mark.parametrize("names", [("bytes",), ("path", "bytes")])
def test_plain_structures_are_images(tmp_path, names):
    cells = [{"path": None, "bytes": content} for content in colours(3)]
    structs = [{name: cell[name] for name in names} for cell in cells]
    assert middle(opened(table(tmp_path / "x.parquet", photo=structs)), 2) == (40, 0, 0)


def test_of_several_columns_of_images_the_one_called_so_is_taken(tmp_path):
    right = colours(3)
    wrong = right[::-1]
    images = opened(table(tmp_path / "x.parquet", mask=wrong, Image=right, label=[0, 1, 0]))
    assert middle(images, 2) == (40, 0, 0)

    for one, other in (("left", "right"), ("img", "image")):
        path = table(tmp_path / f"{one}.parquet", **{one: right, other: wrong, "hash": [b"1"] * 3})
        with pytest.raises(InputError, match=f"images in the columns {one}, {other}; expected one"):
            opened(path)


def test_bytes_that_are_no_images_are_named(tmp_path):
    path = table(tmp_path / "x.parquet", image=[b"one", b"two"], text=["a", "b"])
    with pytest.raises(InputError, match=r"columns image, text \(image: bytes that are no images"):
        opened(path)


def test_the_names_of_class_labels_keep_their_order(tmp_path):
    feature = datasets.ClassLabel(names=["zebra", "ant"])
    data = {"image": [picture()] * 2, "kind": [1, 0]}
    columns = datasets.Features({"image": datasets.Image(), "kind": feature})
    datasets.Dataset.from_dict(data, features=columns).to_parquet(tmp_path / "x.parquet")
    images = opened(tmp_path / "x.parquet")
    assert images.class_names == ("zebra", "ant") and images.labels().tolist() == [1, 0]
    assert not images.source.label_rule


def test_class_numbers_go_before_words_as_in_earlier_versions(tmp_path):
    path = parquet(
        tmp_path / "x.parquet", colours(2), category=["a", "b"], label=["x", "y"], fine_label=[7, 3]
    )
    images = opened(path)
    assert images.labels().tolist() == [7, 3] and not images.source.label_rule
    assert opened(path, label="category").labels().tolist() == [0, 1]
    assert opened(path, label="category").source.label_rule == "column category"


def test_a_column_that_is_no_class_is_named(tmp_path):
    path = parquet(tmp_path / "x.parquet", colours(2), label=[0.5, 0.25], text=["a", "b"])
    images = opened(path)
    assert images.class_names is None and images[0].label is None
    assert "column 'label'" in images.source.notes[0] and "0.5" in images.source.notes[0]
    with pytest.raises(InputError, match="column 'label' .* holds '0.5'"):
        opened(path, label="label")
    with pytest.raises(InputError, match="no column 'kind'; it has label, text"):
        opened(path, label="kind")

    other = parquet(tmp_path / "y.parquet", colours(2), animal=["a", "b"])
    assert "columns animal; anchors.label" in opened(other).source.notes[0]


def test_a_tar_of_webdataset_with_its_classes(tmp_path):
    records = [{"png": image, "cls": str(n % 2).encode()} for n, image in enumerate(colours(6))]
    images = opened(webdataset_tar(tmp_path / "train-000000.tar", records))
    assert images.labels().tolist() == [0, 1, 0, 1, 0, 1] and middle(images, 5) == (100, 0, 0)
    assert images.source.label_rule == "column cls" and "000003.png" in images.source.describe(3)


def test_a_folder_of_tars_by_their_names(tmp_path):
    for name, count in (("train-000000", 3), ("train-000001", 2), ("val-000000", 1)):
        records = [{"png": image, "cls": b"1", "txt": b"a"} for image in colours(count)]
        webdataset_tar(tmp_path / f"{name}.tar", records)
    assert len(opened(tmp_path)) == 5 and len(opened(tmp_path, split="val")) == 1


def test_what_save_to_disk_wrote(tmp_path):
    datasets.disable_progress_bars()
    data = {"image": [picture((40 * n, 0, 0)) for n in range(4)], "label": [0, 1, 0, 1]}
    whole = datasets.Dataset.from_dict(data)
    whole.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict({"train": whole, "test": whole.select([3])}).save_to_disk(
        str(tmp_path / "two")
    )
    assert opened(tmp_path / "one").labels().tolist() == [0, 1, 0, 1]
    test = opened(tmp_path / "two", split="test")
    assert len(test) == 1 and middle(test) == (120, 0, 0)
    with pytest.raises(InputError, match="has the splits train, test, found 'val'"):
        opened(tmp_path / "two", split="val")


@pytest.mark.parametrize("name", ["photos [old]", "what?", "a*b", "[new]"])
def test_signs_of_patterns_in_a_path(tmp_path, name):
    root = tmp_path / name
    many(root / "images", 2)
    parquet(root / "one.parquet", colours(3))
    parquet(root / "both" / "train.parquet", colours(4))
    parquet(root / "both" / "test.parquet", colours(2))
    assert len(opened(root / "images")) == 2
    assert len(opened(root / "one.parquet")) == 3
    assert len(opened(root / "both")) == 4 and len(opened(root / "both", split="test")) == 2


@pytest.mark.parametrize("name", ["imagefolder", "csv", "parquet", "webdataset"])
def test_a_folder_called_like_a_reader_is_that_folder(tmp_path, monkeypatch, name):
    many(tmp_path / "other", 5)
    many(tmp_path / name, 2)
    monkeypatch.chdir(tmp_path)
    assert len(opened(name)) == 2


def test_a_reader_of_datasets_is_no_data_set(tmp_path, monkeypatch):
    many(tmp_path, 3)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="imagefolder is a reader of `datasets`.*./imagefolder"):
        opened("imagefolder")


def test_parquet_files_by_the_names_that_the_hub_gives(tmp_path):
    for split, count in (("train", 3), ("test", 1), ("extra", 2)):
        for shard in range(2):
            name = f"{split}-{shard:05d}-of-00002.parquet"
            parquet(tmp_path / "data" / name, colours(count), label=[shard] * count)
    (tmp_path / "README.md").write_text("no card")
    (tmp_path / "dataset_infos.json").write_text("{}")
    datasets.disable_progress_bars()
    for split in ("train", "test", "extra"):
        theirs = datasets.load_dataset(
            "parquet",
            data_files={split: str(tmp_path / "data" / f"{split}-*.parquet")},
            split=split,
        )
        images = opened(tmp_path, split=split)
        assert images.labels().tolist() == theirs["label"][:]
    with pytest.raises(InputError, match="splits extra, test, train .* found 'validation'"):
        opened(tmp_path, split="validation")


def test_a_clone_of_a_repository_goes_by_its_card(tmp_path):
    parquet(tmp_path / "part_a.parquet", colours(3))
    parquet(tmp_path / "part_b.parquet", colours(2))
    rows = "- config_name: default\n  data_files:\n  - split: test\n    path: part_b.parquet\n"
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{rows}---\n# A card\n")
    assert len(opened(tmp_path, split="test")) == 2


def test_files_of_no_split_beside_others_are_said(tmp_path):
    for name in ("train", "extra"):
        parquet(tmp_path / f"{name}.parquet", colours(2))
    images = opened(tmp_path)
    assert len(images) == 2
    assert [file.line for file in images.source.left_out] == [
        "extra.parquet (a data file of no split)"
    ]


def test_all_files_without_a_split_are_train(tmp_path):
    for name in ("a", "b"):
        parquet(tmp_path / f"{name}.parquet", colours(2))
    assert len(opened(tmp_path)) == 4
    with pytest.raises(InputError, match="has the splits train"):
        opened(tmp_path, split="test")


def test_pictures_of_a_description_beside_data_files(tmp_path):
    """However many there are for each data file."""
    parquet(tmp_path / "train.parquet", colours(3))
    many(tmp_path / "docs", 9)
    (tmp_path / "notes.json").write_text("{}")
    images = opened(tmp_path)
    assert len(images) == 3 and len(images.source.left_out) == 10
    many(tmp_path / "docs", 30)
    with pytest.raises(InputError, match="30 images and 1 data files, such as train.parquet"):
        opened(tmp_path)
    assert len(opened(tmp_path, layout="flat")) == 30


def test_an_archive_beside_what_was_unpacked_of_it(tmp_path):
    many(tmp_path / "photos", 12)
    (tmp_path / "photos.tar").write_bytes(b"\0" * 1024)
    images = opened(tmp_path)
    assert len(images) == 12
    assert [f.line for f in images.source.left_out] == ["photos.tar (a data file beside images)"]


@pytest.mark.parametrize("damage", ["empty", "cut", "text"])
@pytest.mark.parametrize("ending", ["parquet", "tar"])
def test_a_damaged_file_is_named(tmp_path, damage, ending):
    folder = tmp_path / "files"
    good = parquet(folder / "train-0.parquet", colours(3))
    if ending == "tar":
        good.unlink()
        good = webdataset_tar(folder / "train-0.tar", [{"png": image} for image in colours(3)])
    content = good.read_bytes()
    damaged = {"empty": b"", "cut": content[: len(content) // 5], "text": b"<html>not found</html>"}
    bad = folder / f"train-1.{ending}"
    bad.write_bytes(damaged[damage])
    for path in (folder, bad):
        with pytest.raises(InputError) as error:
            opened(path)
        told = str(error.value)
        assert f"train-1.{ending} is damaged" in told and "again" in told and "\n" not in told


def test_a_file_of_another_kind(tmp_path):
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"\(\.zip\); expected a folder, or a file that ends in"):
        opened(tmp_path / "photos.zip")


def test_a_table_without_images(tmp_path):
    datasets.Dataset.from_dict({"text": ["a"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(InputError, match="has the columns text; expected one that holds images"):
        opened(tmp_path / "text.parquet")


def test_the_file_name_of_a_row_is_told(tmp_path):
    cells = [{"bytes": encoded(picture()), "path": f"{name}.png"} for name in ("good", "bad")]
    cells[1]["bytes"] = b"no image"
    datasets.Dataset.from_dict({"image": cells}).to_parquet(tmp_path / "x.parquet")
    images = opened(tmp_path / "x.parquet")
    with pytest.raises(
        InputError, match=r"train_00000001 of .*\(row 1, bad\.png\) does not decode"
    ):
        _ = images[1]


def test_the_fingerprint_follows_the_file(tmp_path):
    path = parquet(tmp_path / "x.parquet", colours(2))
    before = opened(path).source.fingerprint
    assert before and opened(path).source.fingerprint == before
    parquet(path, colours(2), label=[0, 1])
    assert opened(path).source.fingerprint != before


def test_what_a_library_cannot_read_is_one_line(tmp_path, monkeypatch):
    parquet(tmp_path / "x.parquet", colours(1))

    def fail(*arguments, **settings):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(InputError, match="x.parquet, split train, cannot be read .*: first line$"):
        huggingface.open_file(tmp_path / "x.parquet", AnchorsConfig(path=f"{tmp_path}/x.parquet"))
