"""Folders of images with tables of metadata, and what tells that a folder has changed."""

import gc
import json
import os

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clsp.core import InputError
from pictures import BLUE, GREEN, class_of, encoded, many, opened, picture, put


@pytest.fixture
def six(tmp_path):
    """Six images, 00.png … 05.png."""
    return many(tmp_path / "six", 6)


def table(folder, header: str, *rows: str):
    (folder / "metadata.csv").write_text("\n".join((header, *rows)) + "\n")


def test_words_in_a_table_are_classes_with_their_names(six):
    table(six, "file_name,label", *(f"{n:02d}.png,{'cab'[n % 3]}" for n in range(6)))
    images = opened(six)
    assert images.labels().tolist() == [2, 0, 1, 2, 0, 1] and images.class_names == ("a", "b", "c")
    assert class_of(images)["01.png"] == "a"


@pytest.mark.parametrize(
    ("cells", "labels"),
    [
        (("0", "1", "2", "1", "0", "0"), [0, 1, 2, 1, 0, 0]),
        (("0", "", "2", "1", "0", "0"), [0, None, 2, 1, 0, 0]),
        (("0.0", "1.0", "2.0", "1.0", "0.0", ""), [0, 1, 2, 1, 0, None]),
        (("True", "False", "true", "false", "true", ""), [1, 0, 1, 0, 1, None]),
        (("x", "y", "", "x", "y", "x"), [0, 1, None, 0, 1, 0]),
    ],
)
def test_numbers_blanks_floats_and_truth_values(six, cells, labels):
    table(six, "file_name,label", *(f"{n:02d}.png,{cell}" for n, cell in enumerate(cells)))
    assert [anchor.label for anchor in opened(six)] == labels


def test_a_column_of_another_name_is_asked_for(six):
    table(six, "file_name,text,animal", *(f"{n:02d}.png,a red {n},{'xy'[n % 2]}" for n in range(6)))
    images = opened(six)
    assert images.class_names is None
    (note,) = images.source.notes
    assert "text, animal" in note and "anchors.label" in note
    assert opened(six, label="animal").labels().tolist() == [0, 1, 0, 1, 0, 1]
    with pytest.raises(InputError, match="no column 'kind'; it has text, animal"):
        opened(six, label="kind")


def test_captions_in_the_column_label_are_no_classes(tmp_path):
    root = many(tmp_path / "captioned", 300)
    rows = (f"{n:02d}.png,a red square with the number {n}" for n in range(300))
    table(root, "file_name,label", *rows)
    images = opened(root)
    assert len(images) == 300 and images.class_names is None
    assert "'label'" in images.source.notes[0] and "300 different texts" in images.source.notes[0]
    with pytest.raises(InputError, match="300 different texts"):
        opened(root, label="label")


def test_tables_of_other_kinds(six):
    rows = [{"file_name": f"{n:02d}.png", "class": "xy"[n % 2], "note": None} for n in range(6)]
    (six / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert opened(six).labels().tolist() == [0, 1, 0, 1, 0, 1]

    (six / "metadata.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(rows), six / "metadata.parquet")
    images = opened(six)
    assert images.labels().tolist() == [0, 1, 0, 1, 0, 1] and not images.source.left_out


def test_images_that_a_table_does_not_list_and_rows_without_an_image(six):
    rows = (f"{n:02d}.png,{n % 2}" for n in range(5))
    table(six, "file_name,label", *rows, "gone.png,1", "../outside.png,0")
    with pytest.raises(InputError) as error:
        opened(six)
    told = str(error.value)
    assert "3 of 8" in told and "listed in the metadata but not there" in told
    assert "1 not listed in the metadata, such as 05.png" in told

    images = opened(six, on_error="skip")
    assert images.labels().tolist() == [0, 1, 0, 1, 0]
    absent = {file.name for file in images.source.left_out if "not there" in file.reason}
    assert absent == {"gone.png", "../outside.png"}


def test_a_table_says_more_than_folders(tmp_path):
    for name in ("night", "day"):
        many(tmp_path / name, 2)
    put(tmp_path / "noon.png")
    rows = ("day/00.png,cat", "day/01.png,dog", "night/00.png,dog", "night/01.png,cat")
    table(tmp_path, "file_name,label", *rows, "noon.png,cat")
    images = opened(tmp_path)
    assert class_of(images)["noon.png"] == "cat" and class_of(images)["night/00.png"] == "dog"
    assert not images.source.left_out


def test_tables_of_splits_number_the_classes_alike(tmp_path):
    for split, words in (("train", "abc"), ("test", "ac")):
        folder = many(tmp_path / split, len(words))
        table(folder, "file_name,label", *(f"{n:02d}.png,{word}" for n, word in enumerate(words)))
    assert opened(tmp_path).labels().tolist() == [0, 1, 2]
    test = opened(tmp_path, split="test")
    assert test.labels().tolist() == [0, 2] and test.class_names == ("a", "b", "c")


def test_a_table_of_captions_leaves_folders_their_classes(tmp_path):
    for name in ("cats", "dogs"):
        many(tmp_path / name, 2)
    rows = (f"{name}/0{n}.png,a {name}" for name in ("cats", "dogs") for n in range(2))
    table(tmp_path, "file_name,text", *rows)
    assert opened(tmp_path).labels().tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metadata.csv",
            "path,label\n00.png,1\n",
            "has the columns path, label; expected 'file_name'",
        ),
        ("metadata.csv", "file_name,label\n,1\n", "row 1, names no file"),
        ("metadata.csv", "file_name,label\n00.png,1,2\n", "cannot be read"),
        ("metadata.csv", "file_name,label\n00.png,1\n./00.png,2\n", "lists 00.png twice"),
        ("metadata.jsonl", "[1]\n", "row 1 is no JSON object"),
        ("metadata.jsonl", "{", "cannot be read"),
        ("metadata.parquet", "PAR1", "cannot be read"),
    ],
)
def test_a_bad_table_is_named(six, name, content, message):
    (six / name).write_text(content)
    with pytest.raises(InputError, match=message) as error:
        opened(six)
    assert name in str(error.value)


def test_a_column_is_asked_for_where_there_is_no_table(tmp_path):
    for name in ("cats", "dogs"):
        many(tmp_path / name, 1)
    with pytest.raises(
        InputError, match="no column 'animal' of .* it has no table .* empty for these"
    ):
        opened(tmp_path, label="animal")
    assert opened(tmp_path, label="label").labels().tolist() == [0, 1]


def test_names_of_digits_stay_texts(tmp_path):
    for name in ("001", "002"):
        (tmp_path / name).write_bytes(encoded(picture()))
    table(tmp_path, "file_name,label", "001,a", "002,b")
    assert opened(tmp_path).labels().tolist() == [0, 1]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
def test_class_numbers_of_a_table_are_read_as_datasets_reads_them(six):
    """So a set that was begun with an earlier version, which used it, can go on."""
    table(six, "file_name,label", *(f"{n:02d}.png,{n % 3}" for n in (5, 3, 1, 0, 2, 4)))
    datasets.disable_progress_bars()
    theirs = datasets.load_dataset(str(six), split="train")
    gc.collect()  # it leaves the table open
    theirs = theirs.cast_column("image", datasets.Image(decode=False))
    ours = opened(six)
    files = [str(six / ours.source.describe(index)) for index in range(6)]
    assert files == [cell["path"] for cell in theirs["image"]]
    assert ours.labels().tolist() == theirs["label"][:] and not ours.source.label_rule


def test_labels_that_earlier_versions_did_not_read_are_said_so(tmp_path, six):
    many(tmp_path / "numbers" / "9", 1)
    many(tmp_path / "numbers" / "10", 1)
    assert opened(tmp_path / "numbers").source.label_rule == "folders as numbers"
    table(six, "file_name,label", *(f"{n:02d}.png,{'xy'[n % 2]}" for n in range(6)))
    assert opened(six).source.label_rule == "column label"


def test_a_file_that_is_replaced_at_equal_size_and_time_changes_the_fingerprint(six):
    path = six / "03.png"

    def replace(content: bytes) -> tuple[int, int]:
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
        about = path.stat()
        return about.st_size, about.st_mtime_ns

    looks = replace(picture(GREEN).tobytes())
    before = opened(six, size=8).source.fingerprint
    assert opened(six, size=8).source.fingerprint == before
    assert replace(picture(BLUE).tobytes()) == looks
    assert opened(six, size=8).source.fingerprint != before


def test_a_table_that_changes_changes_the_fingerprint(six):
    table(six, "file_name,label", *(f"{n:02d}.png,0" for n in range(6)))
    before = opened(six).source.fingerprint
    table(six, "file_name,label", *(f"{n:02d}.png,1" for n in range(6)))
    assert opened(six).source.fingerprint != before
