import io
import json
import time

import numpy as np
import pytest
from clsp.core import InputError
from clsp.shards import AnchorsConfig, ImageSource, ShardSet, screened, verify_set
from clsp.shards.format.plan import indices_digest
from clsp.shards.sources.digest_cache import remember_digest
from PIL import Image

DAMAGED = (0, 3, 5)


@pytest.fixture
def folder(tmp_path):
    """Ten images of 8x8, of which three do not decode: cut, no image at all, empty."""
    root = tmp_path / "images" / "train"
    root.mkdir(parents=True)
    for number in range(10):
        buffer = io.BytesIO()
        Image.fromarray(np.random.default_rng(number).integers(0, 255, (8, 8, 3), np.uint8)).save(
            buffer, "png"
        )
        content = buffer.getvalue()
        damaged = {0: content[: len(content) // 2], 3: b"no image", 5: b""}
        (root / f"{number:02d}.png").write_bytes(damaged.get(number, content))
    return tmp_path / "images"


def opened(folder, on_error="skip", **settings) -> ImageSource:
    return ImageSource(AnchorsConfig(path=str(folder), on_error=on_error, **settings))


def test_what_does_not_decode_is_left_out_and_the_rest_keeps_its_keys(folder, tmp_path):
    anchors = opened(folder)
    rest = screened(anchors, tmp_path / "skipped.json")
    kept = [index for index in range(10) if index not in DAMAGED]
    assert [anchor.index for anchor in rest] == kept
    assert [anchor.key for anchor in rest] == [f"train_{index:08d}" for index in kept]
    assert rest.size == 8 and rest.digest == anchors.digest
    listed = json.loads((tmp_path / "skipped.json").read_text())["skipped"]
    assert [row["index"] for row in listed] == list(DAMAGED)
    assert all(row["key"] in row["reason"] for row in listed)
    assert all(f"train/{row['index']:02d}.png" in row["reason"] for row in listed)


def test_a_listing_is_used_only_while_it_is_true(folder, tmp_path, monkeypatch):
    listing = tmp_path / "skipped.json"
    screened(opened(folder), listing)
    looked_at = []
    original = ImageSource.why_unreadable
    monkeypatch.setattr(
        ImageSource, "why_unreadable", lambda self, n: (looked_at.append(n), original(self, n))[1]
    )
    assert len(screened(opened(folder, size=8), listing)) == 7 and set(looked_at) == set(DAMAGED)
    (folder / "train" / "03.png").write_bytes((folder / "train" / "04.png").read_bytes())
    assert len(screened(opened(folder), listing)) == 8
    assert [row["index"] for row in json.loads(listing.read_text())["skipped"]] == [0, 5]


def test_by_default_the_first_one_that_is_reached_is_named(folder):
    with pytest.raises(InputError, match="train_00000000 of .* does not decode"):
        opened(folder, "fail")
    anchors = opened(folder, "fail", size=8)
    assert len(screened(anchors)) == 10
    with pytest.raises(InputError, match="train_00000003 of .* does not decode"):
        _ = anchors[3]


def test_a_file_that_is_gone_is_named_or_skipped(folder):
    anchors, kept = opened(folder, "fail", size=8), opened(folder, size=8)
    (folder / "train" / "04.png").unlink()
    with pytest.raises(InputError, match="train_00000004 of .* cannot be read"):
        _ = anchors[4]
    assert 4 not in screened(kept).indices_N and len(screened(kept)) == 6 and kept.digest


def test_the_digest_is_read_once_while_the_source_stays(folder, tmp_path, monkeypatch):
    path, read = tmp_path / "set.source.json", []
    original = ImageSource._content
    monkeypatch.setattr(
        ImageSource, "_content", lambda self, index: (read.append(index), original(self, index))[1]
    )

    def digest() -> str:
        anchors = opened(folder, size=8)
        remember_digest(anchors, path)
        return anchors.digest

    first = digest()
    assert len(read) == 10
    assert digest() == first and len(read) == 10
    time.sleep(0.01)
    (folder / "train" / "01.png").write_bytes((folder / "train" / "02.png").read_bytes())
    assert digest() != first and len(read) == 20
    path.write_text("{")
    assert digest() == digest()


def test_nothing_that_decodes_is_bad_input(folder):
    for path in (folder / "train").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match="none of the 10 images"):
        screened(opened(folder, size=8))


def test_shards_are_made_of_the_rest_and_the_plan_says_which(clsp, folder, model_folder, tmp_path):
    root = tmp_path / "set"
    values = {
        "anchors.path": folder,
        "shards.candidates": 2,
        "shards.records": 4,
        "sampler.steps": 2,
    }
    command = ["shards", "make", "--recipe", "digits", "--out", root, "--diffusion", model_folder]
    command += [f"--set={key}={value}" for key, value in values.items()]
    refused = clsp(*command)
    assert refused.returncode == 2 and "train_00000000" in refused.stderr and not root.exists()
    for _ in range(2):  # the second time it is all there
        found = clsp(*command, "--set", "anchors.on_error=skip")
        assert found.returncode == 0, found.stderr
        assert "skipped 3 of 10 anchors" in found.stdout
    shards = ShardSet(root)
    assert shards.source_indices().tolist() == [1, 2, 4, 6, 7, 8, 9]
    assert shards.plan.selection and shards.plan.selection.digest == indices_digest(
        shards.source_indices()
    )
    assert shards.plan.source.count == 10 and verify_set(root, deep=True) == []
