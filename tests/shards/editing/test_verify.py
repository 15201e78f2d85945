import random
import shutil

import pytest
from clsp.core import InputError
from clsp.shards import read_manifest, verify_set
from clsp.shards.editing.repair import damaged_files


@pytest.fixture
def copy(shard_set, tmp_path):
    shutil.copytree(shard_set, tmp_path / "copy")
    for path in (tmp_path / "copy").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return tmp_path / "copy"


def test_a_fresh_set_is_sound(shard_set):
    assert verify_set(shard_set) == [] == verify_set(shard_set, deep=True)
    assert verify_set(shard_set, expect=read_manifest(shard_set).set_id) == []
    assert verify_set(shard_set, expect="0" * 64) != []


def test_deep_finds_every_flipped_byte(copy):
    random.seed(0)
    files = sorted(
        path for path in copy.rglob("*") if path.is_file() and path.name != "manifest.json"
    )
    for path in files:
        good = path.read_bytes()
        for _ in range(3):
            position = random.randrange(len(good))
            bad = bytearray(good)
            bad[position] ^= 1 << random.randrange(8)
            path.write_bytes(bad)
            faults = verify_set(copy, deep=True)
            assert faults and path.name in faults[0], (path, position)
        path.write_bytes(good)
    assert verify_set(copy, deep=True) == []


@pytest.mark.parametrize("deep", [False, True])
def test_missing_cut_and_foreign_files_are_named(copy, deep):
    shard = copy / "layer-000" / "shard-000001.tar"
    good = shard.read_bytes()
    for cut in (0, 100, 512, 5 * 1024, len(good) - 1):
        shard.write_bytes(good[:cut])
        assert "shard-000001.tar" in verify_set(copy, deep)[0]
    shard.unlink()
    assert "missing" in verify_set(copy, deep)[0]
    shard.write_bytes(good)
    foreign = copy / "layer-000" / "shard-000009.tar"
    foreign.write_bytes(good)
    assert "shard-000009.tar: not in the manifest" in verify_set(copy, deep)[0]
    foreign.unlink()
    assert verify_set(copy, deep) == []


def test_a_file_that_leads_out_of_the_set_is_never_repaired(copy, tmp_path):
    outside = tmp_path / "outside"
    shutil.move(copy / "layer-000", outside)
    (copy / "layer-000").symlink_to(outside)
    name = "layer-000/shard-000000.tar"
    line = f"{name}: leaves the set's folder; the manifest is not trustworthy"
    assert line in verify_set(copy)
    with pytest.raises(InputError, match=line):
        damaged_files(copy)
