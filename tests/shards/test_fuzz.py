"""Arbitrary and mutated files: readers refuse them with this project's errors, within the folder, in little memory."""

import io
import json
import os
import shutil
import struct
import sys
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from clsp.core import InputError, WorkError, canonical_json, sha256_file
from clsp.shards import PairDataset, ShardSet, read_manifest, read_scores, verify_set
from clsp.shards.format.codec import CODECS, decode, encode
from clsp.shards.format.commits import read_commit
from clsp.shards.format.index import read_tar_rows
from clsp.shards.format.plan import read_plan
from clsp.shards.reading.scores import add_scores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

REFUSED = (InputError, WorkError)
fuzzed = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
COMMIT, TAR, INDEX, SCORES = (
    "commits/layer-000/shard-000001.json",
    "layer-000/shard-000001.tar",
    "layer-000.parquet",
    "scores/probe.parquet",
)
FILES = ("manifest.json", "plan.json", COMMIT, INDEX, TAR, SCORES)
OUTSIDE: list[str] = []
"""Every file opened outside of the set's folder while `inside` watches."""
WATCHED: list[str] = []


def watch(event, arguments):
    if event == "open" and WATCHED and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if not path.startswith(WATCHED[0]) and not path.startswith((sys.prefix, sys.base_prefix)):
            OUTSIDE.append(path)


sys.addaudithook(watch)


@pytest.fixture(scope="module")
def scored_set(shard_set, tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz") / "set"
    shutil.copytree(shard_set, root)
    shards = ShardSet(root)
    keys = [shards.key(position) for position in range(len(shards))]
    add_scores(root, "probe", keys, {"quality": np.zeros((40, 3), np.float32)})
    assert verify_set(root, deep=True) == []
    return root


@pytest.fixture
def root(scored_set, tmp_path):
    shutil.copytree(scored_set, tmp_path / "set")
    return tmp_path / "set"


def attempt(read):
    """Return what `read` gives, or None where it refuses."""
    try:
        return read()
    except REFUSED as error:
        assert str(error)
        return None


def check_every_reader(root, plan):
    """Run every reader on every file; the set's manifest agrees with the files where it can be read at all."""
    OUTSIDE.clear()
    WATCHED[:] = [os.path.realpath(root)]
    try:
        attempt(lambda: read_manifest(root))
        attempt(lambda: read_plan(root))
        attempt(lambda: read_tar_rows(root / TAR, plan, 1))
        attempt(lambda: read_scores(root / SCORES, 40))
        read_commit(root, plan, 0, 1)
        shards = attempt(lambda: ShardSet(root))
        if shards is not None:
            for position in (16, 31):
                attempt(
                    lambda p=position: (
                        shards.key(p),
                        shards.label(p),
                        shards.candidate(p, 2),
                        shards.anchor_record(p),
                    )
                )
                attempt(lambda p=position: PairDataset(shards, 0)[(0, p)])
            attempt(shards.labels)
        faults = [attempt(lambda deep=deep: verify_set(root, deep=deep)) for deep in (False, True)]
    finally:
        WATCHED.clear()
    assert OUTSIDE == []
    return faults


def agree(root, name):
    """Let manifest and commit record have the digest and size of a file, so that what is inside is read."""
    path = root / name
    sealed = root / "manifest.json"
    manifest = json.loads(sealed.read_text())
    facts = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    if name == TAR:
        (root / COMMIT).write_bytes(canonical_json(json.loads((root / COMMIT).read_text()) | facts))
        commit = root / COMMIT
        manifest["files"][COMMIT] = {"bytes": commit.stat().st_size, "sha256": sha256_file(commit)}
    manifest["files"][name] = facts
    sealed.write_bytes(canonical_json(manifest))


class Restored:
    """Gives the set back its good files after an example."""

    def __init__(self, root, names):
        self.good = {root / name: (root / name).read_bytes() for name in names}

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for path, content in self.good.items():
            path.write_bytes(content)


@st.composite
def mutations(draw):
    """A function of bytes: flips, cuts, insertions and repetitions, at places relative to the length."""
    kinds = st.sampled_from(["flip", "set", "cut", "insert", "repeat", "number"])
    edits = draw(
        st.lists(
            st.tuples(kinds, st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=8)),
            min_size=1,
            max_size=4,
        )
    )

    def mutate(content: bytes) -> bytes:
        data = bytearray(content)
        for kind, where, some in edits:
            place = int(where * len(data))
            if kind == "flip" and data:
                data[place] ^= 1 << some[0] % 8
            elif kind == "set":
                data[place : place + len(some)] = some
            elif kind == "cut":
                del data[place : place + 1 + some[0] * 16]
            elif kind == "insert":
                data[place:place] = some
            elif kind == "repeat":
                data[place:place] = data[place : place + 1 + some[0]]
            elif kind == "number":
                data[place : place + 4] = b"\xff\xff\xff\x7f"
        return bytes(data)

    return mutate


@pytest.mark.parametrize("name", FILES)
@settings(fuzzed, max_examples=25)
@given(content=st.binary(max_size=2048))
def test_arbitrary_bytes(root, name, content):
    plan = read_plan(root)
    with Restored(root, {name, "manifest.json", COMMIT}):
        (root / name).write_bytes(content)
        if name != "manifest.json":
            agree(root, name)
        check_every_reader(root, plan)


@pytest.mark.parametrize("name", FILES)
@fuzzed
@given(mutate=mutations())
def test_mutated_bytes(root, name, mutate):
    plan = read_plan(root)
    with Restored(root, {name, "manifest.json", COMMIT}):
        (root / name).write_bytes(mutate((root / name).read_bytes()))
        if name != "manifest.json":
            agree(root, name)
        check_every_reader(root, plan)


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 1e308, 0.5]),
    st.sampled_from(
        [
            "",
            "../x",
            "/etc/passwd",
            "a\\b",
            "layer-000",
            "\ud800",
            "\0",
            "x" * 300,
            "1.9",
            "2.0",
            "0" * 64,
        ]
    ),
    st.text(max_size=5),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=5,
)


def spots(value, at=()):
    """The place of every value inside nested JSON."""
    yield at
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, inner in items:
        yield from spots(inner, (*at, key))


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", COMMIT])
@fuzzed
@given(data=st.data())
def test_mutated_json(root, name, data):
    plan = read_plan(root)
    with Restored(root, {name, "manifest.json"}):
        value = json.loads((root / name).read_text())
        for _ in range(data.draw(st.integers(1, 2))):
            at = data.draw(st.sampled_from([spot for spot in spots(value) if spot]))
            inside = value
            for key in at[:-1]:
                inside = inside[key]
            action = data.draw(st.sampled_from(["replace", "remove", "add"]))
            if action == "replace":
                inside[at[-1]] = data.draw(VALUES)
            elif action == "remove":
                del inside[at[-1]]
            elif isinstance(inside, dict):
                inside[
                    data.draw(
                        st.sampled_from(
                            [
                                "../x",
                                "/etc/passwd",
                                "a\\b",
                                "x",
                                "x/" * 3 + "y",
                                "\ud800",
                                "x" * 300,
                            ]
                        )
                    )
                ] = data.draw(st.one_of(VALUES, st.just({"bytes": 3, "sha256": "0" * 64})))
        (root / name).write_text(json.dumps(value))
        if name != "manifest.json":
            agree(root, name)
        check_every_reader(root, plan)


@pytest.mark.parametrize("name", ["manifest.json", "plan.json", COMMIT])
@pytest.mark.parametrize(
    "value", ["NaN", "1e999", '"\\ud800"', "[" * 5000 + "]" * 5000, "9" * 5000]
)
def test_json_that_cannot_be_written_again(root, name, value):
    plan = read_plan(root)
    field = {"manifest.json": "provenance", "plan.json": "sampler", COMMIT: "made"}[name]
    content = (root / name).read_text()
    (root / name).write_text(
        content.replace(f'"{field}": {{', f'"{field}": {{"x": {value}, ', 1).replace(", }", "}")
    )
    if name != "manifest.json":
        agree(root, name)
    if name != COMMIT:
        with pytest.raises(InputError):
            (read_manifest if name == "manifest.json" else read_plan)(root)
    check_every_reader(root, plan)


@pytest.mark.parametrize(
    "bad",
    [
        "../x",
        "/etc/passwd",
        "a\\b",
        "a/../../x",
        "",
        ".",
        ".x",
        "a//b",
        "a/",
        "x" * 256,
        "é",
        "a\n",
    ],
)
def test_names_that_leave_the_folder_are_refused(root, bad):
    manifest = json.loads((root / "manifest.json").read_text())
    manifest["files"][bad] = {"bytes": 1, "sha256": "0" * 64}
    (root / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="not the name of a file inside"):
        read_manifest(root)


@pytest.mark.parametrize("name", [*FILES[1:], "README.md", "layer-000"])
@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "loop", "/"])
def test_links_out_of_the_folder_are_named_and_not_followed(root, name, target):
    plan = read_plan(root)
    path = root / name
    (root.parent / "outside").write_bytes(b"" if path.is_dir() else path.read_bytes())
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    path.symlink_to(
        path.name
        if target == "loop"
        else os.path.relpath(root.parent / "outside", path.parent)
        if ".." in target
        else target
    )
    OUTSIDE.clear()
    WATCHED[:] = [os.path.realpath(root)]
    try:
        faults = verify_set(root, deep=True)
    finally:
        WATCHED.clear()
    assert faults and name in faults[0] and OUTSIDE == []
    assert (
        attempt(lambda: read_tar_rows(root / TAR, plan, 1)) is None
        or name not in (TAR, "layer-000")
        or target == "../outside"
    )


def test_a_plan_that_the_manifest_does_not_name_is_not_read(root):
    manifest = json.loads((root / "manifest.json").read_text())
    del manifest["files"]["plan.json"]
    (root / "manifest.json").write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    (root / "plan.json").unlink()
    (root / "plan.json").symlink_to("/etc/passwd")
    OUTSIDE.clear()
    WATCHED[:] = [os.path.realpath(root)]
    try:
        assert "plan.json: not in the manifest; fetch the set again" in verify_set(root, deep=True)
    finally:
        WATCHED.clear()
    assert OUTSIDE == []


def png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def claiming(content: bytes, codec: str, width: int, height: int) -> bytes:
    """An image whose header states another size than it has."""
    if codec == "png":
        return png_header(width, height) + content[33:]
    if codec == "webp-90":
        return content[:26] + struct.pack("<HH", width, height) + content[30:]
    if codec == "jpeg-95":
        place = content.index(b"\xff\xc0") + 5
        return content[:place] + struct.pack(">HH", height, width) + content[place + 4 :]
    bits = (width - 1) | (height - 1) << 14
    return content[:21] + bits.to_bytes(4, "little") + content[25:]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [(16000, 16000), (8, 16000), (10000, 10000), (8, 9)])
def test_an_image_that_claims_to_be_huge_is_refused_before_decoding(codec, size, monkeypatch):
    content = claiming(encode(np.zeros((8, 8, 3), np.uint8), codec), codec, *size)

    def opened(*args, **kwargs):
        raise AssertionError("the decoder was asked")

    monkeypatch.setattr("clsp.shards.format.codec.Image.open", opened)
    with pytest.raises(WorkError, match=f"image of {size[0]}x{size[1]}, expected 8x8"):
        decode(content, codec, 8)


def put_member(path: Path, number: int, content: bytes):
    """Put other bytes in the place of the n-th member of a tar, of the same length."""
    with tarfile.open(path) as tar:
        member = tar.getmembers()[number]
    data = bytearray(path.read_bytes())
    data[member.offset_data : member.offset_data + member.size] = content.ljust(member.size, b"\0")[
        : member.size
    ]
    path.write_bytes(data)


@pytest.mark.parametrize("codec", CODECS)
def test_pairs_refuse_huge_images_before_decoding(make_set, tmp_path, codec, monkeypatch):
    root = make_set(tmp_path / "set", codec=codec, candidates=1)
    shards = ShardSet(root)
    good = shards.candidate_bytes(16, 0)
    put_member(root / TAR, 1, claiming(good, codec, 16000, 16000))
    monkeypatch.setattr(
        "clsp.shards.reading.pairs.DECODERS",
        {codec: lambda data: pytest.fail("decoded") if len(data) == len(good) else None},
    )
    shards = ShardSet(root)
    dataset = PairDataset(shards, 0)
    with pytest.raises(WorkError, match="16000x16000, expected 8x8"):
        dataset._decode([(shards.layers[0], 16, 1)])
    with pytest.raises(WorkError, match="16000x16000, expected 8x8"):
        shards.candidate(16, 0)


@pytest.mark.parametrize("codec", CODECS)
@fuzzed
@given(mutate=mutations(), cut=st.integers(0, 40) | st.none())
def test_mutated_images(codec, mutate, cut):
    content = encode(np.arange(192, dtype=np.uint8).reshape(8, 8, 3), codec)
    image = attempt(lambda: decode(mutate(content)[:cut], codec, 8))
    assert image is None or (image.shape, image.dtype) == ((8, 8, 3), np.uint8)


def header(kind, size: bytes):
    info = tarfile.TarInfo("train_00000016.anchor.webp")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


KINDS = [
    tarfile.REGTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.GNUTYPE_SPARSE,
]
SIZES = [
    b"77777777777\0",
    b"\x80" + b"\xff" * 11,
    b"\xff" * 12,
    b"\x80\0\0\0" + b"\x7f" + b"\xff" * 7,
    b"-0000000001\0",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_tar_that_claims_to_be_huge_costs_no_memory(root, kind, size):
    plan = read_plan(root)
    (root / TAR).write_bytes(header(kind, size) + bytes(4096))
    agree(root, TAR)
    tracemalloc.start()
    try:
        with pytest.raises(WorkError):
            read_tar_rows(root / TAR, plan, 1)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert verify_set(root, deep=True)


@pytest.mark.parametrize("field", ["count", "size", "records", "candidates", "first", "selection"])
@pytest.mark.parametrize("value", [10**6, 10**12, 10**30])
def test_a_plan_that_claims_to_be_huge_costs_no_memory(root, field, value):
    content = json.loads((root / "plan.json").read_text())
    part = (
        content["source"]
        if field in ("count", "size")
        else content["shards"]
        if field in ("records", "candidates")
        else content
    )
    part[field] = {"count": value, "digest": "0" * 32} if field == "selection" else value
    (root / "plan.json").write_text(json.dumps(content))
    agree(root, "plan.json")
    tracemalloc.start()
    try:
        with pytest.raises(REFUSED):
            ShardSet(root)
        assert attempt(lambda: verify_set(root, deep=True)) != []
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_scores_that_claim_to_be_many_are_not_read(root):
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 40 * 100_000
    columns = {
        "key": pa.array(["x"] * count),
        "candidate": pa.array(np.zeros(count, np.int32)),
        "q": pa.array(np.zeros(count, np.float32)),
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer, compression="zstd")
    (root / SCORES).write_bytes(buffer.getvalue())
    assert len(buffer.getvalue()) < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(WorkError, match="4000000 rows"):
        read_scores(root / SCORES, 40)
    assert pa.total_allocated_bytes() - before < 1 << 20
