"""Everything that can be wrong with a set: `verify` finds it and names the file."""

import io
import json
import random
import shutil
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clsp.core import canonical_json, pixel_digest, sha256_file
from clsp.shards import Record, ShardSet, read_manifest, verify_set
from clsp.shards.editing.extend import extension_plan, start_layer
from clsp.shards.format.codec import encode
from clsp.shards.format.manifest import FileEntry
from clsp.shards.format.plan import read_plan
from clsp.shards.format.seal import seal_if_complete
from clsp.shards.format.writer import write_shard
from clsp.shards.reading.scores import add_scores

TRIALS = 200
TAR = "layer-000/shard-000001.tar"


@pytest.fixture(scope="module")
def rich_set(shard_set, digits, tmp_path_factory):
    """40 anchors, two layers of 3 and 2 candidates, and scores."""
    root = tmp_path_factory.mktemp("rich") / "set"
    shutil.copytree(shard_set, root)
    layer, plan = extension_plan(root, 5)
    start_layer(root, layer, plan)
    dice = np.random.default_rng(0)
    for shard in range(plan.shard_count):
        images = [dice.integers(0, 256, (2, 8, 8, 3), np.uint8) for _ in plan.shard_range(shard)]
        records = [
            Record(digits[n], some) for n, some in zip(plan.shard_range(shard), images, strict=True)
        ]
        write_shard(root, plan, layer, shard, records, dict)
    seal_if_complete(root, plan, layer)
    shards = ShardSet(root)
    keys = [shards.key(position) for position in range(len(shards))]
    add_scores(root, "probe", keys, {"quality": dice.random((40, 5), np.float32)})
    assert verify_set(root, deep=True) == [] and len(shards.layers) == 2
    return root


@pytest.fixture
def copy(rich_set, tmp_path):
    shutil.copytree(rich_set, tmp_path / "copy")
    return tmp_path / "copy"


def places(path):
    """Choose where to damage a file: at its ends, somewhere, and in a tar at a member's boundary, header and data."""
    content = path.read_bytes()
    found = [0, len(content) - 1, random.randrange(len(content))]
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            member = random.choice(tar.getmembers())
        data = member.offset_data
        found += [
            member.offset,
            member.offset + random.randrange(512),
            data - 1,
            data,
            data + member.size - 1,
        ]
        found += [data + random.randrange(member.size), data + member.size]
    return found


def test_every_flipped_bit_and_every_cut_is_found_and_named(copy):
    random.seed(0)
    files = sorted(
        path for path in copy.rglob("*") if path.is_file() and path.name != "manifest.json"
    )
    kinds = set()
    for trial in range(TRIALS):
        path = files[trial % len(files)]
        good = path.read_bytes()
        place = random.choice(places(path))
        is_cut = random.random() < 0.3
        bad = bytearray(good[:place])
        if not is_cut:
            bad = bytearray(good)
            bad[place] ^= 1 << random.randrange(8)
        path.write_bytes(bad)
        faults = verify_set(copy, deep=True)
        name = path.relative_to(copy).as_posix()
        assert len(faults) == 1 and faults[0].startswith(f"{name}: "), (name, place, is_cut, faults)
        assert bool(verify_set(copy)) >= is_cut  # the sizes are enough for a cut
        path.write_bytes(good)
        kinds.add((path.suffix, is_cut))
    assert len(kinds) == 8 and verify_set(copy, deep=True) == []


@pytest.mark.parametrize("deep", [False, True])
def test_missing_cut_and_foreign_files_are_named(copy, deep):
    for path in sorted(
        path for path in copy.rglob("*") if path.is_file() and path.name != "manifest.json"
    ):
        name, good = path.relative_to(copy).as_posix(), path.read_bytes()
        path.unlink()
        assert verify_set(copy, deep) == [f"{name}: missing, the manifest has {len(good)} bytes"]
        path.write_bytes(good + b"\0")
        assert verify_set(copy, deep)[0].startswith(f"{name}: {len(good) + 1} bytes")
        path.write_bytes(good)
    for name in (
        "layer-001/shard-000003.tar",
        "commits/layer-000/x.json",
        "layer-001/x",
        "scores/x.parquet",
        "x.parquet",
    ):
        (copy / name).write_bytes(b"x")
        assert verify_set(copy, deep) == [f"{name}: not in the manifest; remove it"]
        (copy / name).unlink()
    assert verify_set(copy, deep) == []


def test_swapped_shards_are_both_named(copy):
    one, other = copy / "layer-000/shard-000000.tar", copy / TAR
    contents = one.read_bytes(), other.read_bytes()
    one.write_bytes(contents[1])
    other.write_bytes(contents[0])
    found = " ".join(verify_set(copy, deep=True))
    assert "layer-000/shard-000000.tar" in found and TAR in found
    reseal(copy)
    assert "layer-000/shard-000000.tar" in verify_set(copy, deep=True)[0]


def test_a_changed_manifest_is_found_by_the_set_id_that_is_expected(copy):
    set_id = read_manifest(copy).set_id
    path = copy / "manifest.json"
    good = path.read_bytes()
    assert verify_set(copy, expect=set_id) == []
    for bad in (
        good.replace(b'"bytes"', b'"bytes" '),
        good + b"\n",
        good.replace(b"cc-by", b"xx-by"),
        good[:-1],
    ):
        path.write_bytes(bad)
        assert verify_set(copy, expect=set_id)[0].startswith("manifest.json: set ID")
    assert verify_set(copy)[0].startswith("manifest.json: set ID")  # not written as it would be
    reseal(copy, extra={"note": 1})
    assert verify_set(copy, deep=True) == [] and set_id in verify_set(copy, expect=set_id)[0]


def reseal(root, drop=(), extra=None):
    """Make commit records and manifest agree with whatever the files now are."""
    manifest = json.loads((root / "manifest.json").read_text()) | (extra or {})
    manifest["files"] = {
        name: entry for name, entry in manifest["files"].items() if name not in drop
    }
    for path in sorted(root.glob("layer-*/*.tar")):
        commit = root / "commits" / path.parent.name / f"{path.stem}.json"
        facts = json.loads(commit.read_text()) | {
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        commit.write_bytes(canonical_json(facts))
    for name in manifest["files"]:
        path = root / name
        manifest["files"][name] = FileEntry(
            bytes=path.stat().st_size, sha256=sha256_file(path)
        ).model_dump()
    (root / "manifest.json").write_bytes(canonical_json(manifest))


def rewrite(path, change):
    """Write a tar anew; `change(number, member, content)` gives the (member, content) pairs in place of a member."""
    buffer = io.BytesIO()
    with (
        tarfile.open(path) as old,
        tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        for number, member in enumerate(old.getmembers()):
            for changed, content in change(number, member, old.extractfile(member).read()):
                changed.size = len(content) if changed.isreg() else 0
                new.addfile(changed, io.BytesIO(content))
    path.write_bytes(buffer.getvalue())


def fact(**changes):
    """Changes of the JSON of the first record; a function is given the old value."""

    def change(number, member, content):
        if number == 4:
            facts = json.loads(content)
            facts |= {
                key: new(facts.get(key)) if callable(new) else new for key, new in changes.items()
            }
            content = canonical_json(facts)
        yield member, content

    return change


def at(place, **fields):
    """Another kind of member, or another content, at one place."""

    def change(number, member, content):
        if number == place:
            content = fields.get("content", content)
            for name in set(fields) - {"content"}:
                setattr(member, name, fields[name])
        yield member, content

    return change


def doubled(number, member, content):
    yield member, content
    if number == 79:
        yield member, content


def extended(number, member, content):
    """An extended header before a member: other readers would take its name, or its data, from there."""
    if number == 79:
        header = tarfile.TarInfo("././@LongLink")
        header.type = tarfile.GNUTYPE_LONGNAME
        buffer = member.name.encode() + b"\0"
        header.size = len(buffer)
        yield LongLink(header), buffer
    yield member, content


class LongLink(tarfile.TarInfo):
    """A header that `addfile` gives its data, as it does for plain files alone."""

    def __init__(self, header):
        super().__init__(header.name)
        self.type = header.type

    def isreg(self):
        return True


OTHER = encode(np.full((8, 8, 3), 7, np.uint8), "webp")
LARGE = encode(np.zeros((16, 16, 3), np.uint8), "webp")
CHANGES = {
    "a field too many": fact(note="x"),
    "another label": fact(label=lambda label: (label + 1) % 10),
    "no label": fact(label=None),
    "another index": fact(index=lambda index: index + 1),
    "another anchor": fact(anchor="0" * 32),
    "another key": fact(key="train_00000099"),
    "a wrong pixel digest": fact(pixels=lambda pixels: pixels | {"c001": "0" * 32}),
    "a digest too many": fact(pixels=lambda pixels: pixels | {"c009": "0" * 32}),
    "other pixels": at(2, content=OTHER),
    "another size": at(2, content=LARGE),
    "another codec": at(2, content=encode(np.zeros((8, 8, 3), np.uint8), "png")),
    "no image": at(2, content=b"x" * 40),
    "an empty image": at(2, content=b""),
    "a symlink": at(2, type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": at(2, type=tarfile.LNKTYPE, linkname="train_00000016.c000.webp"),
    "a device": at(2, type=tarfile.CHRTYPE),
    "a folder": at(2, type=tarfile.DIRTYPE),
    "a path that climbs": at(2, name="../train_00000016.c001.webp"),
    "an image too large": at(2, content=bytes(1 << 17)),
    "a JSON too large": at(4, content=b" " * (1 << 20) + b"{}"),
    "no JSON": at(4, content=b"{"),
    "a member twice": doubled,
    "an extended header": extended,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_set_that_agrees_with_itself_but_not_with_its_index_or_pixels(copy, name):
    rewrite(copy / TAR, CHANGES[name])
    reseal(copy)
    assert verify_set(copy, deep=True)[0].removeprefix(f"{copy}/").startswith(TAR), name
    assert verify_set(copy) == []  # presence, sizes and counts are right


def test_bytes_behind_the_end_of_a_tar_are_found(copy):
    path = copy / TAR
    good = path.read_bytes()
    for more in (b"x", bytes(100) + b"x", bytes(1 << 20)):
        path.write_bytes(good + more)
        reseal(copy)
        assert TAR in verify_set(copy, deep=True)[0]


def test_a_wrong_digest_in_index_and_tar_alike_is_found_by_the_pixels(copy):
    rewrite(copy / TAR, fact(pixels=lambda pixels: pixels | {"c001": "0" * 32}))
    change_table(copy / "layer-000.parquet", pixels=lambda row: [*row[:2], bytes(16), row[3]])
    reseal(copy)
    assert verify_set(copy, deep=True) == [
        f"{TAR}: train_00000016.c001.webp: pixels differ from the recorded digest"
    ]


def test_a_wrong_anchor_in_index_and_all_tars_alike_is_found_by_the_source(copy):
    for layer in (0, 1):
        rewrite(
            copy / f"layer-00{layer}/shard-000001.tar",
            fact(anchor="0" * 32) if layer == 0 else second_layer,
        )
        change_table(copy / f"layer-00{layer}.parquet", anchor=lambda row: bytes(16))
    reseal(copy)
    assert verify_set(copy, deep=True)[0].startswith(
        "layer-000.parquet: its anchors have the digest"
    )


def second_layer(number, member, content):
    yield (
        member,
        canonical_json(json.loads(content) | {"anchor": "0" * 32}) if number == 2 else content,
    )


def change_table(path, **changes):
    """Change columns of row 16 (the first of the second shard) of an index, keeping its row groups."""
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(number) for number in range(file.num_row_groups)]
    with pq.ParquetWriter(
        path, groups[0].schema, compression="zstd", write_statistics=False
    ) as writer:
        for number, group in enumerate(groups):
            rows = group.to_pylist()
            if number == 1:
                rows[0] |= {name: change(rows[0][name]) for name, change in changes.items()}
            writer.write_table(pa.Table.from_pylist(rows, group.schema))


@pytest.mark.parametrize("column", ["key", "index", "shard", "anchor", "sizes", "pixels"])
def test_an_index_that_lacks_values_is_damaged(copy, column):
    change_table(copy / "layer-000.parquet", **{column: lambda value: None})
    reseal(copy)
    faults = verify_set(copy, deep=True)
    assert "row group 1 cannot be read (it lacks values)" in faults[0] or (
        column == "key" and "keys" in faults[0]
    )


@pytest.mark.parametrize("what", ["keys", "candidates", "more", "none", "null"])
def test_scores_of_other_anchors_or_candidates_are_found(copy, what):
    path = copy / "scores/probe.parquet"
    table = pq.read_table(path)
    columns = {name: table[name].to_pylist() for name in table.schema.names}
    change = {
        "keys": lambda: columns["key"].__setitem__(
            1, "train_00000007"
        ),  # not the first of its anchor
        "candidates": lambda: columns["candidate"].__setitem__(1, 0),
        "more": lambda: [
            columns.__setitem__(name, [v for v in values for _ in (0, 1)])
            for name, values in columns.items()
        ],
        "none": lambda: [values.clear() for values in columns.values()],
        "null": lambda: columns["key"].__setitem__(5, None),
    }[what]
    change()
    pq.write_table(pa.table(columns, table.schema), path)
    reseal(copy)
    for deep in (False, True):
        assert "probe.parquet" in verify_set(copy, deep=deep)[0]


def test_what_the_plan_expects_must_be_in_the_manifest(copy):
    plan = read_plan(copy, 1)
    for name in (
        "plan.json",
        "layer-001.json",
        "layer-001.parquet",
        "README.md",
        TAR,
        "commits/layer-001/shard-000000.json",
    ):
        manifest = (copy / "manifest.json").read_bytes()
        reseal(copy, drop=[name])
        assert f"{name}: not in the manifest" in " ".join(verify_set(copy)), name
        (copy / "manifest.json").write_bytes(manifest)
    assert plan.shard_count == 3 and verify_set(copy) == []


def test_pixel_digests_tell_shapes_apart():
    assert pixel_digest(np.zeros((2, 8, 3), np.uint8)) != pixel_digest(
        np.zeros((8, 2, 3), np.uint8)
    )
