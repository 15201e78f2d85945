"""Sets of a lossy codec: every reader sees the pixels that their members decode to, and equal bytes stay so."""

import io
import json
import shutil
import tarfile

import datasets
import numpy as np
import pytest
import webdataset
from clsp.core import InputError
from clsp.shards import (
    PairDataset,
    ShardSet,
    merge_sets,
    pack_set,
    pair_stream,
    subset_set,
    verify_set,
)
from clsp.shards.editing.derive import range_positions
from clsp.shards.editing.export import export_folder, export_npy
from clsp.shards.reading.pixel_cache import PixelCache
from PIL import Image

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
ENDINGS = {"webp-90": "webp", "jpeg-95": "jpg"}


@pytest.fixture(scope="module", params=list(ENDINGS))
def codec(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def root(make_set, codec, tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("lossy") / "set", codec=codec)


def by_pillow(root) -> dict[str, np.ndarray]:
    """All images of the first layer, by the names of their members."""
    found = {}
    for path in sorted(root.glob("layer-000/*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                if not member.name.endswith(".json"):
                    content = tar.extractfile(member)
                    assert content is not None
                    found[member.name] = np.asarray(Image.open(io.BytesIO(content.read())))
    return found


def test_all_readers_see_the_pixels_of_the_members(root, codec, tmp_path):
    expected = by_pillow(root)
    ending = ENDINGS[codec]
    shards = ShardSet(root, cache=tmp_path / "cache")
    assert verify_set(root, deep=True) == []

    # The set itself, batches of pairs, with and without a cache, and the stream
    cache = PixelCache(shards)
    cache.open()
    for pixels in (None, cache, cache):
        batch = PairDataset(shards, 0, pixels=pixels, count=3).__getitems__(
            [(0, p) for p in range(40)]
        )
        assert batch.candidates_BCHW is not None
        for position, key in enumerate(batch.keys):
            anchor = expected[f"{key}.anchor.{ending}"]
            made = np.stack([expected[f"{key}.c{number:03d}.{ending}"] for number in range(3)])
            assert np.array_equal(shards.anchor(position), anchor)
            assert np.array_equal(shards.candidate(position, 2), made[2])
            assert np.array_equal(batch.anchors_BCHW[position].permute(1, 2, 0), anchor)
            drawn = batch.candidates_BCHW[position].permute(0, 2, 3, 1).numpy()
            assert sorted(map(bytes, drawn)) == sorted(map(bytes, made))

    for sample in pair_stream(root):
        anchor = expected[f"{sample['__key__']}.anchor.{ending}"]
        assert np.array_equal(sample["anchor"].permute(1, 2, 0), anchor)


def test_webdataset_and_datasets_read_it(root, codec, tmp_path):
    expected = by_pillow(root)
    ending = ENDINGS[codec]
    urls = [str(path) for path in sorted(root.glob("layer-000/*.tar"))]
    records = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8"))
    rows = datasets.load_dataset(
        str(root), "layer-000", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(records) == len(rows) == 40
    for record in [*records, *rows]:
        for field in (f"anchor.{ending}", f"c002.{ending}"):
            assert np.array_equal(
                np.asarray(record[field]), expected[f"{record['__key__']}.{field}"]
            )


def test_what_is_made_of_it_has_its_bytes(root, codec, make_set, tmp_path):
    parent = ShardSet(root)
    ending = ENDINGS[codec]

    # Subset, merge and pack copy
    subset_set(parent, tmp_path / "part", range_positions(parent, 0, 16), {})
    subset_set(parent, tmp_path / "rest", range_positions(parent, 16, 40), {})
    merge_sets(ShardSet(tmp_path / "part"), ShardSet(tmp_path / "rest"), tmp_path / "whole")
    pack_set(parent, tmp_path / "packed")
    tars = [path.read_bytes() for path in sorted(root.glob("layer-000/*.tar"))]
    for name in ("whole", "packed"):
        assert [
            path.read_bytes() for path in sorted(tmp_path.glob(f"{name}/layer-000/*.tar"))
        ] == tars
        assert verify_set(tmp_path / name, deep=True) == []

    # Another one of the same plan
    again = make_set(tmp_path / "again", codec=codec)
    assert [path.read_bytes() for path in sorted(again.glob("layer-000/*.tar"))] == tars

    # Export
    expected = by_pillow(root)
    export_npy(parent, tmp_path / "x.npy")
    assert np.array_equal(
        np.load(tmp_path / "x.npy")[39, 1], expected[f"train_00000039.c001.{ending}"]
    )
    export_folder(parent, tmp_path / "images")
    files = list((tmp_path / "images").rglob(f"*.{ending}"))
    assert len(files) == 40 * 4
    assert {path.name for path in files} == set(expected)


def test_descriptions_name_codec_and_endings(root, codec, clsp):
    ending = ENDINGS[codec]
    assert f"{codec}, lossy" in (root / "README.md").read_text(encoding="utf-8")
    assert f"anchor.{ending}" in (root / "croissant.json").read_text(encoding="utf-8")
    plan = json.loads((root / "plan.json").read_text(encoding="utf-8"))
    assert plan["shards"]["codec"] == codec
    assert f"{codec}, lossy" in clsp("shards", "info", root).stdout


def test_a_codec_that_pillow_lacks_is_told(root, codec, monkeypatch, clsp):
    lacking = {"webp-90": "webp", "jpeg-95": "jpg"}[codec]
    monkeypatch.setattr("clsp.shards.format.codec.features.check", lambda name: name != lacking)
    found = clsp("shards", "info", root)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1), found.stderr
    assert f"coded as {codec}, and Pillow was built without" in found.stderr


def test_a_codec_of_a_later_version_is_told(shard_set, tmp_path, clsp):
    root = tmp_path / "set"
    shutil.copytree(shard_set, root)
    plan = (root / "plan.json").read_text(encoding="utf-8")
    (root / "plan.json").write_text(plan.replace('"webp"', '"avif-60"'), encoding="utf-8")
    with pytest.raises(InputError, match="avif-60.*webp, png, webp-90, jpeg-95; install a newer"):
        ShardSet(root)
    found = clsp("shards", "info", root)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1 and "avif-60" in found.stderr
