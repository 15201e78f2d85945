import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from clsp.core import InputError, WorkError
from clsp.shards import ShardSet
from clsp.shards.editing.export import export_folder, export_npy
from PIL import Image


@pytest.fixture(scope="module")
def shards(shard_set):
    return ShardSet(shard_set)


def pixels(shards: ShardSet) -> np.ndarray:
    return np.stack(
        [[shards.candidate(i, k) for k in range(shards.candidates)] for i in range(len(shards))]
    )


def tree(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_npy_holds_the_candidates_in_order(shards, tmp_path):
    reported: list[tuple[int, int]] = []
    export_npy(shards, tmp_path / "new" / "x.npy", lambda *counts: reported.append(counts))
    for mode in (None, "r"):
        array = np.load(tmp_path / "new" / "x.npy", mmap_mode=mode, allow_pickle=False)
        assert array.shape == (40, 3, 8, 8, 3) and array.dtype == np.uint8
        assert np.array_equal(array, pixels(shards))
    assert reported == [(done, 40) for done in range(1, 41)]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x.npy"]


def test_a_broken_export_leaves_no_array(shards, tmp_path):
    def stop(done: int, total: int) -> None:
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_npy(shards, tmp_path / "x.npy", stop)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt):
        export_folder(shards, tmp_path / "images", stop)
    assert not list(tmp_path.rglob("*.jsonl")) and list(tmp_path.rglob("*.webp"))
    with pytest.raises(InputError, match="remove it"):
        export_folder(shards, tmp_path / "images")


@pytest.mark.parametrize(("codec", "anchors"), [("webp", True), ("png", False)])
def test_datasets_reads_the_folder_with_its_metadata(make_set, tmp_path, codec, anchors):
    shards = ShardSet(make_set(tmp_path / "set", codec=codec, include_anchors=anchors))
    reported: list[tuple[int, int]] = []
    export_folder(shards, tmp_path / "images", lambda *counts: reported.append(counts))
    assert reported[-1] == (40, 40) and len(reported) == 40
    cache = str(tmp_path / "cache")
    rows = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "images"), split="train", cache_dir=cache
    )
    assert len(rows) == 40 * (3 + anchors)
    assert set(rows.column_names) == {"image", "key", "candidate", "index", "label"}
    found = {(row["index"], row["candidate"]): row for row in rows}
    for position in range(40):
        for candidate in [*([None] if anchors else []), 0, 1, 2]:
            row = found.pop((position, candidate))
            image = (
                shards.anchor(position)
                if candidate is None
                else shards.candidate(position, candidate)
            )
            assert np.array_equal(np.asarray(row["image"]), image)
            assert (row["key"], row["label"]) == (shards.key(position), shards.labels()[position])
    assert found == {}


def test_the_files_are_the_sets_bytes_in_a_folder_per_shard(shards, tmp_path):
    export_folder(shards, tmp_path)  # an empty folder that exists is welcome
    rows = [
        json.loads(line)
        for line in (tmp_path / "train" / "metadata.jsonl").read_text().splitlines()
    ]
    assert rows[16 * 4 + 2]["file_name"] == "shard-000001/train_00000016.c001.webp"
    assert (tmp_path / "train" / rows[0]["file_name"]).read_bytes() == shards.anchor_bytes(0)
    for row in rows:
        with Image.open(tmp_path / "train" / row["file_name"]) as image:
            assert image.size == (8, 8)
        if row["candidate"] is not None:
            written = (tmp_path / "train" / row["file_name"]).read_bytes()
            assert written == shards.candidate_bytes(row["index"], row["candidate"])
    assert len(rows) == len(list(tmp_path.rglob("*.webp"))) == 160


def test_what_exists_is_never_overwritten(shards, shard_set, tmp_path):
    (tmp_path / "x.npy").write_bytes(b"mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.txt").write_bytes(b"mine")
    before, set_before = tree(tmp_path), tree(shard_set)
    with pytest.raises(InputError, match="exists"):
        export_npy(shards, tmp_path / "x.npy")
    with pytest.raises(InputError, match="exists"):
        export_npy(shards, tmp_path / "images")
    for folder in (tmp_path / "images", tmp_path / "x.npy"):
        with pytest.raises(InputError, match="not empty"):
            export_folder(shards, folder)
    assert tree(tmp_path) == before and tree(shard_set) == set_before


@pytest.mark.parametrize("key", ["../../outside", "/tmp/outside", ".hidden", "a\\b", "", "a\nb"])
def test_a_set_cannot_name_files_outside_of_the_folder(shard_set, tmp_path, monkeypatch, key):
    shards = ShardSet(shutil.copytree(shard_set, tmp_path / "set"))
    monkeypatch.setattr(shards, "key", lambda position: key)
    with pytest.raises(WorkError, match="no file name"):
        export_folder(shards, tmp_path / "out" / "images")
    assert [
        path.name for path in tmp_path.rglob("*") if path.is_file() and "set" not in path.parts
    ] == []
