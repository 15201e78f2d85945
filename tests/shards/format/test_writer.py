import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
from clsp.core import WorkError
from clsp.shards import (
    DiffusionPlan,
    Plan,
    Record,
    ShardsConfig,
    ShardWriter,
    SourcePlan,
    write_plan,
    write_shard,
)
from clsp.shards.format.commits import read_commit
from clsp.shards.format.layout import commit_path, shard_path
from clsp.shards.format.plan import read_plan
from clsp.shards.format.tar import ShardTar
from clsp.shards.format.writer import EncodedRecord, RecordTar


def records(digits, indices):
    return [Record(digits[index], np.zeros((3, 8, 8, 3), np.uint8)) for index in indices]


@pytest.fixture
def empty_set(shard_set, tmp_path):
    write_plan(tmp_path, read_plan(shard_set))
    return tmp_path, read_plan(shard_set)


def test_a_shard_is_a_plain_tar_of_declared_members(shard_set):
    with tarfile.open(shard_path(shard_set, 0, 2)) as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        facts = json.load(tar.extractfile(names[4]))
    fields = ["anchor.webp", "c000.webp", "c001.webp", "c002.webp", "json"]
    assert names == [f"train_{index:08d}.{field}" for index in range(32, 40) for field in fields]
    assert {(member.mtime, member.uname, member.mode) for member in members} == {(0, "clsp", 0o444)}
    assert (
        facts["index"] == 32
        and facts["key"] == "train_00000032"
        and set(facts["pixels"]) == {"anchor", "c000", "c001", "c002"}
    )


def test_an_exception_leaves_no_shard(digits, empty_set):
    root, plan = empty_set

    def failing():
        yield from records(digits, range(5))
        raise OSError("disk on fire")

    with pytest.raises(OSError, match="fire"):
        write_shard(root, plan, 0, 0, failing(), dict)
    assert read_commit(root, plan, 0, 0) is None
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["plan.json"]


def test_a_shard_is_committed_by_its_caller_or_not_at_all(digits, empty_set):
    root, plan = empty_set
    some = records(digits, range(16))
    with (
        pytest.raises(ValueError, match="shard 0: not committed"),
        ShardWriter(root, plan, 0, 0) as writer,
    ):
        for record in some:
            writer.add(record)
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["plan.json"]

    with ShardWriter(root, plan, 0, 0) as writer:
        for record in some:
            writer.add(record)
        assert read_commit(root, plan, 0, 0) is None and not shard_path(root, 0, 0).exists()
        commit = writer.commit({"by": "test"})
    assert read_commit(root, plan, 0, 0) == commit and commit.made == {"by": "test"}


def test_anchors_in_another_order_are_refused(digits, empty_set):
    root, plan = empty_set
    with pytest.raises(ValueError, match="wrote anchors"):
        write_shard(root, plan, 0, 0, records(digits, [1, 0, *range(2, 16)]), dict)
    assert not shard_path(root, 0, 0).exists()


def test_missing_records_are_not_committed(digits, empty_set):
    root, plan = empty_set
    with pytest.raises(ValueError, match="wrote anchors"):
        write_shard(root, plan, 0, 0, records(digits, range(15)), dict)
    assert read_commit(root, plan, 0, 0) is None


def test_what_is_committed_is_never_replaced_by_other_bytes(digits, empty_set):
    root, plan = empty_set
    commit = write_shard(root, plan, 0, 0, records(digits, range(16)), dict)
    content = shard_path(root, 0, 0).read_bytes()

    white = np.full((3, 8, 8, 3), 255, np.uint8)
    others = [Record(digits[index], white) for index in range(16)]
    with pytest.raises(WorkError, match="committed with other bytes"):
        write_shard(root, plan, 0, 0, others, dict)

    assert shard_path(root, 0, 0).read_bytes() == content
    assert read_commit(root, plan, 0, 0) == commit


def test_a_shard_without_a_fitting_commit_record_does_not_exist(digits, empty_set):
    root, plan = empty_set
    write_shard(root, plan, 0, 0, records(digits, range(16)), dict)
    assert read_commit(root, plan, 0, 0) is not None
    path, tar = commit_path(root, 0, 0), shard_path(root, 0, 0)
    good = path.read_bytes()
    for bad in (b"{", good.replace(plan.digest[:8].encode(), b"00000000"), b"[]"):
        path.write_bytes(bad)
        assert read_commit(root, plan, 0, 0) is None
    path.write_bytes(good)
    tar.chmod(0o644)
    tar.write_bytes(tar.read_bytes()[:-512])
    assert read_commit(root, plan, 0, 0) is None


def test_equal_records_have_given_equal_tars_ever_since(tmp_path):
    """The digest of the version that wrote its headers itself; by it the sets of that version go on and extend."""
    source = SourcePlan(
        name="x", split="train", licence="", count=3, size=8, resize="crop", digest="00"
    )
    model = DiffusionPlan(origin="m", digest="11")
    plan = Plan(
        source=source, diffusion=model, sampler={}, shards=ShardsConfig(candidates=2, records=3)
    )
    encoded = []
    for i in range(3):
        contents = [bytes([i, j]) * (100 * i + j) for j in range(3)]
        pixels = [f"{i}{j}" for j in range(3)]
        encoded.append(EncodedRecord(f"train_{i:08d}", i, i or None, "00" * 16, contents, pixels))
    with (tmp_path / "shard.tar").open("wb") as file, RecordTar(file, plan, 0) as tar:
        for record in encoded:
            tar.add(record)
        written = tar.finish()
    content = (tmp_path / "shard.tar").read_bytes()
    assert written.size == len(content) == 20480
    assert written.sha256 == hashlib.sha256(content).hexdigest()
    assert written.sha256 == "cce80a2484c5e9784d78578f4f30e5fa0d3818abb56fa6010a39cdf79087b596"


def test_a_members_name_has_at_most_100_bytes(tmp_path):
    with (tmp_path / "shard.tar").open("wb") as file, ShardTar(file) as tar:
        tar.add("ß" * 49, {"x": b"1"})
        with pytest.raises(ValueError, match="name is too long"):
            tar.add("a" * 99, {"x": b"1"})
    with tarfile.open(tmp_path / "shard.tar", encoding="utf-8") as tar:
        assert tar.getnames() == ["ß" * 49 + ".x"] and not tar.getmembers()[0].pax_headers


def test_the_tar_is_what_tarfile_writes(shard_set):
    path = shard_path(shard_set, 0, 0)
    expected = io.BytesIO()
    with (
        tarfile.open(path) as found,
        tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for member in found:
            plain = tarfile.TarInfo(member.name)
            plain.size, plain.mode = member.size, 0o444
            plain.uname = plain.gname = "clsp"
            tar.addfile(plain, found.extractfile(member))
    assert path.read_bytes() == expected.getvalue()
