import io
import json
import tarfile

import numpy as np
import pytest
import webdataset
from clsp.shards import Record, read_plan, write_plan, write_shard
from clsp.shards.commits import read_commit
from clsp.shards.layout import commit_path, shard_path
from clsp.shards.tar import member_header


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


def test_missing_records_are_not_committed(digits, empty_set):
    root, plan = empty_set
    with pytest.raises(ValueError, match="wrote anchors"):
        write_shard(root, plan, 0, 0, records(digits, range(15)), dict)
    assert read_commit(root, plan, 0, 0) is None


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


def test_the_tar_is_what_webdataset_and_tarfile_write(shard_set):
    path = shard_path(shard_set, 0, 0)
    plan, expected = read_plan(shard_set), io.BytesIO()
    with (
        tarfile.open(path) as tar,
        webdataset.TarWriter(expected, encoder=False, user="clsp", group="clsp", mode=0o444, mtime=0) as writer,
    ):
        members = {member.name: tar.extractfile(member).read() for member in tar}
        for key in dict.fromkeys(name.split(".")[0] for name in members):
            writer.write(
                {"__key__": key, **{field: members[f"{key}.{field}"] for field in [*plan.image_fields, "json"]}}
            )
    assert path.read_bytes() == expected.getvalue()


def test_a_members_name_has_at_most_100_bytes():
    header = member_header("a" * 100, 7)
    assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").tobuf(tarfile.USTAR_FORMAT) == header
    with pytest.raises(ValueError, match="101 bytes"):
        member_header("a" * 101, 7)
