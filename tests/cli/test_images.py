"""`clsp images`: what a folder is taken for, before anything is made; and the same lines before the work itself."""

import json
import re

import numpy as np
import pytest
from clsp.cli import progress
from clsp.cli.recipe import shipped_recipes
from clsp.shards import ShardSet, verify_set
from conftest import REPOSITORY, settings
from pictures import BLUE, GREEN, RED, colours, encoded, many, parquet, picture, put
from PIL import Image


@pytest.fixture
def photos(tmp_path):
    """Two classes of five, a caption and a text; one image has alpha."""
    root = tmp_path / "photos"
    many(root / "cats", 5, RED)
    many(root / "dogs", 5, BLUE)
    put(root / "cats" / "04.png", picture(GREEN).convert("RGBA"))
    (root / "cats" / "00.txt").write_text("a red square")
    (root / "README").write_text("mine")
    return root


def test_what_is_there(clsp, photos):
    found = clsp("images", photos)
    assert found.returncode == 0 and found.stderr == ""
    told = found.stdout
    assert "anchors: photos, split train: 10 images" in told
    assert "2 classes from folders: cats 5, dogs 5" in told
    assert "left out: 1 no image (.txt), such as cats/00.txt" in told
    assert re.search(r"mode +RGB 9, RGBA 1", told) and re.search(r"size +8x8 10", told)
    assert "1 image with alpha, which lets a white background through" in told
    assert re.search(r"damaged +0 \(by their headers\)", told)


def test_a_walk_that_takes_long_is_shown(clsp, photos, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    shown = [line for line in clsp("images", photos).stdout.splitlines() if "looking for" in line]
    assert shown and all(re.fullmatch(r"looking for images: \d+ files", line) for line in shown)


def test_splits_with_their_classes(clsp, tmp_path):
    many(tmp_path / "Train" / "cats", 3)
    many(tmp_path / "Train" / "dogs", 2)
    many(tmp_path / "val" / "dogs", 1)
    told = clsp("images", tmp_path).stdout
    assert "Train: 5 images: cats 3, dogs 2" in told and "val: 1 image: dogs 1" in told
    assert (
        "split validation: 1 image"
        in clsp("images", tmp_path, "--set=anchors.split=validation").stdout
    )


def test_a_source_that_is_no_folder(clsp, tmp_path):
    path = parquet(tmp_path / "x.parquet", colours(3), animal=["cat", "dog", None])
    told = clsp("images", path).stdout
    assert "no classes" in told and "has the columns animal; anchors.label" in told
    told = clsp("images", path, "--set", "anchors.label=animal").stdout
    assert "2 classes from column animal: cat 1, dog 1; 1 image without a class" in told
    told = clsp("images", "digits", "--set", "anchors.split=test").stdout
    assert "anchors: digits, split test: 359 images" in told and "10 classes" in told


def test_a_contact_sheet_and_the_list_of_what_is_left_out(clsp, photos, tmp_path):
    (photos / "cats" / "gone.png").symlink_to("nowhere.png")
    sheet = tmp_path / "made" / "sheet.png"
    found = clsp("images", photos, "--sheet", sheet, "--left-out", tmp_path / "list.json")
    assert found.returncode == 0, found.stderr
    with Image.open(sheet) as image:
        pixels = np.asarray(image)
    assert pixels.shape[2] == 3 and pixels.shape[1] > 600
    for colour in (RED, BLUE, GREEN):
        assert (pixels == colour).all(axis=2).sum() > 1000
    counts = json.loads((tmp_path / "list.json").read_text())["counts"]
    assert counts == {"dangling link": 1, "no image (.txt)": 1, "no image (no suffix)": 1}
    assert clsp("images", photos, "--sheet", "sheet.jpg").returncode == 2


def test_damaged_images_are_named_and_an_exit_code(clsp, photos):
    content = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    (photos / "cats" / "01.png").write_bytes(content[: len(content) // 2])
    assert clsp("images", photos).returncode == 0  # its header is whole
    found = clsp("images", photos, "--decode")
    assert found.returncode == 1 and "damaged: anchor train_00000001" in found.stdout
    assert "cats/01.png" in found.stdout and re.search(r"damaged +1 \(all decoded\)", found.stdout)


def test_pixels_that_are_not_plain(clsp, tmp_path):
    put(tmp_path / "a.png", Image.fromarray(np.full((8, 8), 1000, np.uint16)))
    put(tmp_path / "b.tif", Image.fromarray(np.full((8, 8), 0.5, np.float32)))
    told = clsp("images", tmp_path).stdout
    assert "16-bit images up to 1000: 10 bits become 8 (measured)" in told
    assert "1 image may need a setting" in told and "b.tif" in told and "anchors.range" in told
    assert "setting" not in clsp("images", tmp_path, "--set", "anchors.range=[0,1]").stdout


@pytest.mark.parametrize("name", ["[new]", "12", "true", "a=b", "caf\u00e9 \u732b"])
def test_paths_of_all_sorts(clsp, tmp_path, monkeypatch, name):
    many(tmp_path / name, 2)
    monkeypatch.chdir(tmp_path)
    found = clsp("images", name)
    assert found.returncode == 0 and "2 images" in found.stdout, found.stderr


def test_a_folder_of_ones_own_called_digits_is_told_of(clsp, tmp_path, monkeypatch):
    many(tmp_path / "digits", 2)
    monkeypatch.chdir(tmp_path)
    told = clsp("images", "digits").stdout
    assert "1438 images" in told and "for the folder of that name write ./digits" in told
    assert "2 images" in clsp("images", "./digits").stdout


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda root: root.mkdir(), ["has no images", "it is empty", "expected"]),
        (
            lambda root: [root.mkdir(), (root / "a.txt").write_text("x")],
            ["has no images", "1 no image (.txt), such as a.txt"],
        ),
        (lambda root: None, ["does not exist", "expected"]),
        (
            lambda root: [many(root / name, 1) for name in ("bus", "train")],
            ["splits (train) beside others (bus)", "anchors.layout"],
        ),
        (lambda root: [root.mkdir(), (root / "photos.zip").write_text("x")], ["photos.zip"]),
    ],
)
def test_what_cannot_be_read_is_one_line(clsp, tmp_path, make, parts):
    make(tmp_path / "source")
    found = clsp("images", tmp_path / "source")
    lines = found.stderr.strip().splitlines()
    assert found.returncode == 2 and len(lines) == 1, found.stderr
    assert str(tmp_path / "source") in lines[0] and all(part in lines[0] for part in parts)


def options(source, **more) -> list[str]:
    values = {"anchors.path": source, "sampler.steps": 1, "shards.candidates": 1}
    return ["--recipe=digits", *settings({**values, "shards.records": 4, **more})]


def test_shards_make_says_it_first_and_lists_what_is_left_out(clsp, photos, model_folder, tmp_path):
    root = tmp_path / "set"
    command = ["shards", "make", *options(photos), "--diffusion", model_folder, "--out", root]
    found = clsp(*command)
    assert found.returncode == 0, found.stderr
    assert "2 classes from folders: cats 5, dogs 5" in found.stdout
    listed = json.loads((tmp_path / "set.left_out.json").read_text())
    assert listed["counts"] == {"no image (.txt)": 1, "no image (no suffix)": 1}

    shards = ShardSet(root)
    source = shards.plan.source
    assert (source.classes, source.background) == (["cats", "dogs"], "#ffffff")
    assert shards.labels().tolist() == [0] * 5 + [1] * 5 and not verify_set(root, deep=True)
    assert (shards.anchor(4)[4:] == GREEN).all()

    told = clsp("shards", "info", root).stdout
    assert "2: cats, dogs" in told and "background #ffffff" in told


def test_shards_plan_says_it_too(clsp, photos, model_folder):
    found = clsp("shards", "plan", *options(photos), "--diffusion", model_folder, "--seconds=0")
    assert found.returncode == 0 and "2 classes from folders" in found.stdout, found.stderr


def test_diffusion_train_lists_what_is_left_out(clsp, photos, tmp_path):
    small = {"diffusion.steps": 1, "diffusion.batch_size": 2, "diffusion.probe_images": 0}
    out = tmp_path / "diffusion"
    found = clsp("diffusion", "train", *options(photos, **small), "--out", out)
    assert found.returncode == 0 and "2 classes from folders" in found.stdout, found.stderr
    assert json.loads((tmp_path / "diffusion.left_out.json").read_text())["source"] == "photos"


def test_more_than_one_in_a_hundred_stops_the_work(clsp, photos, model_folder, tmp_path):
    (photos / "cats" / "gone.png").symlink_to("nowhere.png")
    root = tmp_path / "set"
    command = ["shards", "make", *options(photos), "--diffusion", model_folder, "--out", root]
    found = clsp(*command)
    assert found.returncode == 2 and not root.exists()
    assert "1 of 11 images" in found.stderr and "cats/gone.png" in found.stderr
    assert clsp(*command, "--set", "anchors.on_error=skip").returncode == 0
    assert len(ShardSet(root)) == 10


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("b.tif", encoded(Image.fromarray(np.full((8, 8), 0.5, np.float32)), "TIFF"), ["range"]),
        ("b.png", b"no image", ["no image format", "replace or remove it"]),
    ],
)
def test_what_would_fail_later_is_refused_before_the_work(
    clsp, photos, model_folder, tmp_path, name, content, parts
):
    (photos / "dogs" / name).write_bytes(content)
    found = clsp(
        "shards", "make", *options(photos, **{"anchors.size": 8}),
        "--diffusion", model_folder, "--out", tmp_path / "set",
    )  # fmt: skip
    assert found.returncode == 2 and not (tmp_path / "set").exists()
    assert f"dogs/{name}" in found.stderr and all(part in found.stderr for part in parts)


def test_a_set_that_an_earlier_version_began_goes_on(clsp, photos, model_folder, tmp_path):
    """Its plan names no classes, and no background, since there was none to choose."""
    command = ["shards", "make", "--diffusion", model_folder, "--out"]
    before = options(photos, **{"anchors.background": "none"})
    assert clsp(*command, tmp_path / "whole", *before).returncode == 0

    begun = tmp_path / "begun"
    assert clsp(*command, begun, *before, "--part", "0/2").returncode == 0
    plan = json.loads((begun / "plan.json").read_text())
    del plan["source"]["classes"]
    text = json.dumps(plan, indent=2, sort_keys=True) + "\n"
    (begun / "plan.json").write_text(text)

    refused = clsp(*command, begun, *options(photos))
    assert refused.returncode == 2 and "source.background" in refused.stderr
    assert clsp(*command, begun, *before).returncode == 0
    assert (begun / "plan.json").read_text() == text and not verify_set(begun, deep=True)
    for tar in (tmp_path / "whole").rglob("*.tar"):
        assert (begun / tar.relative_to(tmp_path / "whole")).read_bytes() == tar.read_bytes()


# What the recipes document


def cifar(root):
    """`--set anchors.path=FOLDER, a folder with train.parquet and test.parquet`."""
    for split, count in (("train", 6), ("test", 4)):
        labels = [number % 2 for number in range(count)]
        parquet(root / f"{split}.parquet", colours(count), label=labels)


def stl10(root):
    """`The folder has the images in unlabeled/, train/CLASS/ and test/CLASS/`."""
    many(root / "unlabeled", 9)
    for split, count in (("train", 3), ("test", 2)):
        for name in ("bird", "ship"):
            many(root / split / name, count)


def own_folder(root):
    """`FOLDER/train/CLASS/…, FOLDER/test/CLASS/…`."""
    for split, count in (("train", 3), ("test", 2)):
        for name in ("cats", "dogs"):
            many(root / split / name, count)


def imagenet(root):
    """`ImageNet's own files of the hundred classes in train/CLASS/ and val/CLASS/`."""
    for split, count in (("train", 3), ("val", 2)):
        for name in ("n01440764", "n02111889"):
            many(root / split / name, count)


DOCUMENTED = {
    "cifar10": (cifar, {"train": (6, True), "test": (4, True)}),
    "folder-256": (own_folder, {"train": (6, True), "test": (4, True)}),
    "imagenet100-256": (imagenet, {"train": (6, True), "validation": (4, True)}),
    "stl10": (stl10, {"unlabeled": (9, False), "train": (6, True), "test": (4, True)}),
}
"""For every recipe whose head describes a folder: how to make one, and what each split must have."""


def heads() -> dict[str, str]:
    """The comment at the head of every shipped recipe."""
    found = {}
    for name in shipped_recipes():
        text = (REPOSITORY / "recipes" / f"{name}.toml").read_text()
        found[name] = text.split("[anchors]", maxsplit=1)[0]
    return found


def test_every_layout_that_a_recipe_documents_is_made_here():
    documented = {name for name, head in heads().items() if "folder" in head.lower()}
    assert documented == set(DOCUMENTED)


@pytest.mark.parametrize("recipe", DOCUMENTED)
def test_what_a_recipe_documents_is_read(clsp, tmp_path, recipe):
    make, splits = DOCUMENTED[recipe]
    make(tmp_path / "data")
    for split, (count, has_classes) in splits.items():
        found = clsp(
            "images", tmp_path / "data", f"--recipe={recipe}", f"--set=anchors.split={split}"
        )
        assert found.returncode == 0, found.stderr
        assert f"split {split}: {count} images" in found.stdout
        assert ("2 classes" in found.stdout) == has_classes
