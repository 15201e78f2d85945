"""Every file of a folder is taken, or left out for a reason that is kept."""

import os

import pytest
from clsp.core import InputError
from clsp.shards.sources import walk
from clsp.shards.sources.walk import find_files
from pictures import BLUE, RED, encoded, many, opened, picture, put


def names(files) -> list[str]:
    return [file.name for file in files]


def reasons(found) -> dict[str, str]:
    return {file.name: file.reason for file in found.left_out}


def test_a_walk_tells_how_many_files_it_has_seen(tmp_path, monkeypatch):
    monkeypatch.setattr(walk, "TALLIED", 3)
    for folder, count in (("a", 7), ("b", 3), ("c", 1)):
        many(tmp_path / folder, count)
    (tmp_path / "README").touch()
    told = []
    find_files(tmp_path, lambda done, total: told.append((done, total)))
    seen = [done for done, _ in told]
    assert seen == sorted(seen) and seen[-1] == 7 + 3 + 1 + 4  # files, and the root's entries
    assert len(told) == 2 + 3 + 1 + 1 and {total for _, total in told} == {0}


@pytest.mark.parametrize(
    "name",
    ["a.JPG", "a.Jpeg", "a.jfif", "a.jpe", "a.PNG", "a.webp", "a.avif", "a.TIFF", "a.bmp", "a.gif"],
)
def test_usual_and_unusual_endings_are_images(tmp_path, name):
    kind = {"JPG": "JPEG", "JPE": "JPEG", "JFIF": "JPEG"}.get(name[2:].upper(), name[2:].upper())
    (tmp_path / name).write_bytes(encoded(picture(BLUE), kind))
    images = opened(tmp_path)
    assert len(images) == 1 and images.source.describe(0) == name
    assert images[0].image[4, 4, 2] > 200 and not images.source.left_out


def test_what_the_ending_does_not_tell_the_first_bytes_do(tmp_path):
    many(tmp_path, 1)
    for name in ("no_suffix", "scan.0001", "photo.unknown"):
        (tmp_path / name).write_bytes(encoded(picture()))
    (tmp_path / "LICENSE").write_text("free")
    (tmp_path / "data.unknown").write_bytes(b"\x00\x01\x02")
    found = find_files(tmp_path)
    assert names(found.images) == ["00.png", "no_suffix", "photo.unknown", "scan.0001"]
    assert reasons(found) == {
        "LICENSE": "no image (no suffix)",
        "data.unknown": "no image (.unknown)",
    }
    assert not any(file.counts for file in found.left_out)


def test_links_are_followed_and_dangling_ones_counted(tmp_path):
    dogs = many(tmp_path / "elsewhere" / "dogs", 3, BLUE)
    root = tmp_path / "linked"
    many(root / "cats", 3, RED)
    (root / "dogs").symlink_to(dogs)
    (root / "cats" / "more.png").symlink_to(dogs / "00.png")
    (root / "cats" / "gone.png").symlink_to("nowhere.png")
    (root / "notes.txt").symlink_to("nowhere.txt")
    found = find_files(root)
    assert len(found.images) == 7 and "dogs/02.png" in names(found.images)
    assert reasons(found) == {"cats/gone.png": "dangling link", "notes.txt": "dangling link"}
    assert [file.name for file in found.left_out if file.counts] == ["cats/gone.png"]
    assert opened(root, on_error="skip").labels().tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_a_loop_of_links_ends(tmp_path):
    many(tmp_path / "a", 2)
    (tmp_path / "a" / "b").mkdir()
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "all").symlink_to(tmp_path)
    found = find_files(tmp_path)
    assert names(found.images) == ["a/00.png", "a/01.png"]
    assert reasons(found) == {
        "a/b/up/": "link to a folder above it",
        "all/": "link to a folder above it",
    }


def test_two_ways_to_one_folder_are_two_classes(tmp_path):
    """A link to a folder beside it is no loop."""
    many(tmp_path / "cats", 2)
    (tmp_path / "felines").symlink_to(tmp_path / "cats")
    assert len(find_files(tmp_path).images) == 4


def test_hidden_files_and_those_of_a_mac_are_no_images(tmp_path):
    many(tmp_path / "cats", 2)
    many(tmp_path / "dogs", 2)
    many(tmp_path / "__MACOSX" / "cats", 2)
    many(tmp_path / ".thumbnails", 2)
    put(tmp_path / "cats" / "._00.png")
    (tmp_path / ".DS_Store").write_bytes(b"\0")
    found = find_files(tmp_path)
    assert len(found.images) == 4
    assert set(reasons(found)) == {".DS_Store", ".thumbnails", "__MACOSX", "cats/._00.png"}
    assert set(reasons(found).values()) == {"hidden"}
    assert opened(tmp_path).class_names == ("cats", "dogs")


def test_a_model_and_a_set_inside_the_images_are_none_of_them(tmp_path):
    many(tmp_path, 12)
    for name, mark in (("diffusion", "model_index.json"), ("shards", "plan.json")):
        many(tmp_path / name / "samples", 2)
        (tmp_path / name / mark).write_text("{}")
        (tmp_path / name / "weights.safetensors").write_bytes(b"0")
    images = opened(tmp_path)
    assert len(images) == 12 and images.class_names is None
    assert {file.name for file in images.source.left_out} == {"diffusion/", "shards/"}


def test_heic_without_its_library_is_counted_and_named(tmp_path, monkeypatch):
    many(tmp_path, 2)
    (tmp_path / "photo.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr(walk, "opens_heif", lambda: False)
    with pytest.raises(InputError, match=r"1 of 3 .*clsp\[heif\].*photo\.HEIC"):
        opened(tmp_path)
    assert len(opened(tmp_path, on_error="skip")) == 2


def test_heic_with_its_library_is_an_image(tmp_path, monkeypatch):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic")
    monkeypatch.setattr(walk, "opens_heif", lambda: True)
    assert names(find_files(tmp_path).images) == ["photo.heic"]


def test_names_that_are_no_text(tmp_path, clsp):
    root = os.fsencode(tmp_path)
    many(tmp_path, 2)
    for name in (b"caf\xe9.png", b"caf\xe9.txt"):
        with open(root + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(encoded(picture()))
    found = clsp("images", tmp_path, "--left-out", tmp_path / "list.json")
    assert found.returncode == 0 and "3 images" in found.stdout and "caf?.txt" in found.stdout
    assert "caf?.txt" in (tmp_path / "list.json").read_text()


def test_a_folder_that_cannot_be_listed_stops(tmp_path, monkeypatch):
    """However small its share of all files would be: nobody knows what is in it."""
    many(tmp_path / "cats", 200)
    many(tmp_path / "dogs", 3)
    original = os.scandir

    def scandir(path):
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied", str(path))
        return original(path)

    monkeypatch.setattr(walk.os, "scandir", scandir)
    found = find_files(tmp_path)
    assert len(found.images) == 200 and reasons(found) == {
        "dogs/": "cannot be listed: Permission denied"
    }
    with pytest.raises(InputError, match="dogs/"):
        opened(tmp_path)
