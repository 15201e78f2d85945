"""Paths on the command line and in recipes: a home folder, a file URL, other URLs."""

import shutil

import pytest
from clsp.core import InputError, local_path
from clsp.shards import AnchorsConfig, ImageSource, ShardSet
from PIL import Image


@pytest.mark.parametrize("form", ["file://{0}", "file://localhost{0}", "~/set"])
def test_a_set_is_found_by_its_path_however_it_is_written(
    clsp, shard_set, tmp_path, form, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(shard_set, tmp_path / "set")
    location = form.format(tmp_path / "set")
    for verb in ("verify", "info"):
        found = clsp("shards", verb, location)
        assert found.returncode == 0, found.stderr
    assert len(ShardSet(location)) == 40

    pushed = clsp("shards", "push", location, f"file://{tmp_path}/pushed")
    pulled = clsp("shards", "pull", f"file://{tmp_path}/pushed", "~/pulled")
    assert (pushed.returncode, pulled.returncode) == (0, 0), pushed.stderr + pulled.stderr
    assert clsp("shards", "verify", tmp_path / "pulled").returncode == 0


def test_images_are_found_by_a_file_url(tmp_path):
    for index in range(2):
        path = tmp_path / "photos" / "train" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(path)
    by_path = ImageSource(AnchorsConfig(path=str(tmp_path / "photos")))
    by_url = ImageSource(AnchorsConfig(path=f"file://{tmp_path}/photos"))
    assert (by_url.digest, by_url.source.name) == (by_path.digest, by_path.source.name)


def test_other_urls_are_refused_where_a_path_is_needed(clsp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = clsp("shards", "verify", "s3://bucket/set")
    assert found.returncode == 2 and "clsp shards pull" in found.stderr
    found = clsp("shards", "make", "--recipe", "digits", "--out", "s3://bucket/set")
    assert found.returncode == 2 and "s3://bucket/set" in found.stderr
    assert not any(tmp_path.iterdir())
    with pytest.raises(InputError, match="file on this machine"):
        local_path("file://server/share")
