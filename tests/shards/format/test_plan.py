import hashlib
import json

import numpy as np
import pytest
from clsp.core import InputError, canonical_json
from clsp.shards import AnchorsConfig, ImageSource, Plan, ShardsConfig, write_plan
from clsp.shards.format.plan import (
    DiffusionPlan,
    SourcePlan,
    check_plan,
    follow_plan,
    read_plan,
    source_plan,
)
from pictures import GREEN, colours, many, opened, parquet, picture, put
from PIL import Image

PLAN_OF_DIGITS = """\
{
  "diffusion": {
    "digest": "11",
    "origin": "none"
  },
  "format": "clsp-shard-set",
  "sampler": {
    "weight": 0.1
  },
  "schema_version": "1.0",
  "shards": {
    "candidates": 2,
    "codec": "webp",
    "include_anchors": true,
    "records": 4
  },
  "source": {
    "count": 10,
    "digest": "7cfaa60bfcea1034fb80465fe0aefe60",
    "licence": "cc-by-4.0",
    "name": "digits",
    "resize": "crop",
    "size": 8,
    "split": "train"
  }
}
"""
"""The plan of a source of plain images as the very first version wrote it."""


def plan(**shards) -> Plan:
    return Plan(
        source=SourcePlan(
            name="x", split="train", licence="", count=10, size=8, resize="crop", digest="00"
        ),
        diffusion=DiffusionPlan(origin="model", digest="11"),
        sampler={"weight": 0.1},
        shards=ShardsConfig(records=4, **shards),
    )


def test_plan_survives_its_file(tmp_path):
    write_plan(tmp_path / "set", plan())
    write_plan(tmp_path / "set", plan())
    found = read_plan(tmp_path / "set")
    assert found == plan() and found.digest == plan().digest
    assert [len(found.shard_range(shard)) for shard in range(found.shard_count)] == [4, 4, 2]


def test_another_plan_is_refused_naming_what_differs(tmp_path):
    write_plan(tmp_path / "set", plan(candidates=4))
    before = (tmp_path / "set" / "plan.json").read_bytes()
    with pytest.raises(InputError, match=r"shards\.candidates: 4 there, 8 here"):
        write_plan(tmp_path / "set", plan(candidates=8))
    assert (tmp_path / "set" / "plan.json").read_bytes() == before


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is no shard set"):
        write_plan(tmp_path, plan())
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": "2.0"}, r"schema version 2\.0, this clsp reads 1\.x"),
        ({"format": "other"}, "does not describe a clsp shard set"),
        ({"source": {"name": "x"}}, "source.split: Field required"),
        (
            {"shards": {"records": 1}, "selection": {"count": 2000000, "digest": ""}},
            "at most 1000000",
        ),
    ],
)
def test_foreign_plans_are_refused(tmp_path, change, message):
    content = {**json.loads(plan().to_bytes()), **change}
    (tmp_path / "plan.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path)


def test_a_field_of_a_later_minor_version_is_kept(tmp_path):
    content = {**json.loads(plan().to_bytes()), "schema_version": "1.7", "later": {"a": 1}}
    (tmp_path / "plan.json").write_bytes(canonical_json(content))
    found = read_plan(tmp_path)
    assert found.to_bytes() == canonical_json(content) and found.count == 10


def plan_of(images: ImageSource) -> Plan:
    return Plan(
        source=source_plan(images),
        diffusion=DiffusionPlan(origin="none", digest="11"),
        sampler={"weight": 0.1},
        shards=ShardsConfig(candidates=2, records=4),
    )


def test_a_source_of_plain_images_has_the_plan_it_always_had():
    settings = {"background": "navy", "bits": 12, "range": (0, 1), "layout": "classes"}
    for config in ({}, settings):
        found = plan_of(ImageSource(AnchorsConfig(path="digits", limit=10, **config)))
        assert found.to_bytes() == PLAN_OF_DIGITS.encode()
        assert found.digest == hashlib.sha256(PLAN_OF_DIGITS.encode()).hexdigest()


def test_what_changes_pixels_and_labels_is_part_of_the_plan(tmp_path):
    root = tmp_path / "images"
    put(root / "9" / "a.png", picture(GREEN).convert("RGBA"))
    put(root / "10" / "b.png", Image.fromarray(np.full((8, 8), 1023, np.uint16)))
    written = json.loads(plan_of(opened(root)).to_bytes())["source"]
    assert (written["background"], written["bits"]) == ("#ffffff", 10)
    assert (written["classes"], written["label_rule"]) == (["9", "10"], "folders as numbers")
    assert "range" not in written

    digests = {plan_of(opened(root)).digest}
    for settings in ({"background": "red"}, {"bits": 12}, {"range": (0, 1023)}, {"layout": "flat"}):
        digests.add(plan_of(opened(root, **settings)).digest)
    assert len(digests) == 5


def test_a_set_without_the_names_of_its_classes_goes_on(tmp_path):
    """Earlier versions kept none; of folders they had the same numbers."""
    root = tmp_path / "images"
    for name in ("cats", "dogs"):
        many(root / name, 2)
    new = plan_of(opened(root))
    assert new.source.classes == ["cats", "dogs"]

    content = json.loads(new.to_bytes())
    del content["source"]["classes"]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "plan.json").write_bytes(canonical_json(content))
    assert check_plan(tmp_path / "set", new)
    write_plan(tmp_path / "set", new)
    assert read_plan(tmp_path / "set").source.classes is None


@pytest.mark.parametrize("kind", ["words", "numbers"])
def test_a_set_with_other_labels_does_not_go_on(tmp_path, kind):
    """Half of its records would have the labels of before."""
    if kind == "words":
        images = opened(parquet(tmp_path / "x.parquet", colours(2), label=["a", "b"]))
    else:
        for name in ("9", "10"):
            many(tmp_path / "images" / name, 1)
        images = opened(tmp_path / "images")

    content = json.loads(plan_of(images).to_bytes())
    del content["source"]["classes"], content["source"]["label_rule"]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "plan.json").write_bytes(canonical_json(content))
    with pytest.raises(InputError, match=r"another plan .*source\.label_rule"):
        check_plan(tmp_path / "set", plan_of(images))


def test_pixels_of_a_set_are_made_as_its_plan_says(tmp_path):
    """As earlier versions made them where it says nothing: with the hidden colour, and the upper 8 of 16 bits."""
    clear = np.zeros((8, 8, 4), np.uint8)
    put(tmp_path / "0.png", Image.fromarray(clear))
    put(tmp_path / "1.png", Image.fromarray(np.full((8, 8), 4095, np.uint16)))
    new = plan_of(opened(tmp_path)).source
    old = new.model_copy(update={"background": None, "bits": None})

    images = follow_plan(opened(tmp_path, background="red", bits=14), old)
    assert (images[0].image == 0).all() and (images[1].image == 4095 >> 8).all()
    images = follow_plan(opened(tmp_path, background="red", bits=14), new)
    assert (images[0].image == 255).all() and (images[1].image == 255).all()

    settings = {"background": "none", "bits": 16}
    assert plan_of(opened(tmp_path, **settings)).source == old  # so such a set is finished
