import json

import pytest
from clsp.core import InputError, canonical_json
from clsp.shards import Plan, ShardsConfig, write_plan
from clsp.shards.format.plan import DiffusionPlan, SourcePlan, read_plan


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
