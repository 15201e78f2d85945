"""A set is read with nothing of ours: plain webdataset, and datasets by builder name and through the card."""

import datasets
import numpy as np
import pytest
import webdataset
from clsp.shards import ShardSet

# The other libraries leave their tars to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
FIELDS = {"anchor.webp", "c000.webp", "c001.webp", "c002.webp", "json"}


@pytest.fixture(scope="module")
def shards(shard_set):
    return ShardSet(shard_set)


def test_webdataset(shard_set, shards):
    urls = [str(path) for path in sorted((shard_set / "layer-000").glob("*.tar"))]
    records = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    assert [record["__key__"] for record in records] == [
        shards.key(position) for position in range(40)
    ]
    for position, record in enumerate(records):
        assert set(record) >= FIELDS and record["json"]["index"] == position
        assert np.array_equal(record["anchor.webp"], shards.anchor(position))
        assert np.array_equal(record["c002.webp"], shards.candidate(position, 2))


@pytest.mark.parametrize("how", ["builder", "card"])
def test_datasets(shard_set, shards, how, tmp_path):
    if how == "builder":
        files = str(shard_set / "layer-000" / "*.tar")
        rows = datasets.load_dataset(
            "webdataset", data_files={"train": files}, split="train", cache_dir=str(tmp_path)
        )
    else:
        rows = datasets.load_dataset(
            str(shard_set), "layer-000", split="train", cache_dir=str(tmp_path)
        )
    assert len(rows) == 40 and set(rows.column_names) >= FIELDS
    by_key = {row["__key__"]: row for row in rows}
    for position in range(40):
        row = by_key[shards.key(position)]
        assert row["json"]["label"] == shards.labels()[position]
        assert np.array_equal(np.asarray(row["c001.webp"]), shards.candidate(position, 1))


def test_datasets_does_not_take_another_set_of_the_same_name_from_its_cache(
    shard_set, make_set, tmp_path, monkeypatch
):
    other = make_set(tmp_path / "other", candidates=2)
    for folder, root, candidates in (("a", shard_set, 3), ("b", other, 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "shards").symlink_to(root)
        monkeypatch.chdir(tmp_path / folder)
        rows = datasets.load_dataset(
            "shards", "layer-000", split="train", cache_dir=str(tmp_path / "cache")
        )
        assert sum(name.startswith("c0") for name in rows.column_names) == candidates
