import hashlib
import json

import numpy as np
import pytest
from clsp.core import InputError, WorkError
from clsp.shards import ShardsConfig, ShardSet, verify_set, write_plan
from clsp.shards.editing.export import export_npy
from clsp.shards.editing.import_npy import import_npy, import_plan, open_npy
from clsp.shards.format.plan import check_plan

SHAPE = (40, 3, 8, 8, 3)


@pytest.fixture
def array() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, SHAPE, dtype=np.uint8)


@pytest.fixture
def start(tmp_path, digits, array):
    """A function that saves the array and starts a set; gives the arguments of `import_npy`."""

    def start_set(name: str = "set", **shards):
        np.save(tmp_path / "published.npy", array)
        opened = open_npy(tmp_path / "published.npy", digits)
        config = ShardsConfig(**{"candidates": 8, "records": 16, **shards})
        plan = import_plan(tmp_path / "published.npy", opened, digits, config)
        write_plan(tmp_path / name, plan)
        return tmp_path / name, plan, digits, opened

    return start_set


def contents(root) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*.*")
        if path.suffix != ".json"
    }


@pytest.mark.parametrize("anchors", [True, False])
@pytest.mark.parametrize("codec", ["webp", "png"])
def test_an_array_comes_back_as_it_was(start, array, digits, tmp_path, codec, anchors):
    root, plan, *_ = arguments = start(codec=codec, include_anchors=anchors)
    reported: list[tuple[int, int]] = []
    set_id = import_npy(*arguments, lambda *counts: reported.append(counts))
    assert reported == [(16, 40), (32, 40), (40, 40)]
    shards = ShardSet(root, digits)
    assert shards.set_id == set_id and verify_set(root, deep=True) == []
    assert shards.candidates == plan.shards.candidates == 3  # the array's, not the recipe's
    export_npy(shards, tmp_path / "again.npy")
    assert np.array_equal(np.load(tmp_path / "again.npy"), array)
    assert (tmp_path / "again.npy").read_bytes() == (tmp_path / "published.npy").read_bytes()
    assert all(np.array_equal(shards.anchor(i), digits[i].image) for i in range(40))


def test_a_fortran_ordered_array_is_the_same_set(start, array, digits, tmp_path):
    path = tmp_path / "fortran.npy"
    np.save(path, np.asfortranarray(array))
    opened = open_npy(path, digits)
    assert opened.flags.f_contiguous and not opened.flags.writeable
    root, plan = tmp_path / "fortran", import_plan(path, opened, digits, ShardsConfig(records=16))
    write_plan(root, plan)
    import_npy(root, plan, digits, opened)
    straight = start()
    import_npy(*straight)
    tars = [sorted((folder / "layer-000").glob("*.tar")) for folder in (root, straight[0])]
    assert len(tars[0]) == 3 and [tar.read_bytes() for tar in tars[0]] == [
        tar.read_bytes() for tar in tars[1]
    ]


def test_the_plan_and_the_commit_records_say_where_it_came_from(start, tmp_path):
    root, plan, *_ = arguments = start()
    import_npy(*arguments)
    digest = hashlib.sha256((tmp_path / "published.npy").read_bytes()).hexdigest()
    assert (plan.diffusion.origin, plan.diffusion.digest) == ("imported from published.npy", digest)
    assert plan.sampler == {"imported": "published.npy"}
    made = json.loads((root / "commits" / "layer-000" / "shard-000000.json").read_text())["made"]
    assert made["imported"] == "published.npy" and set(made["versions"]) == {
        "clsp",
        "numpy",
        "pillow",
    }
    assert made["finished"].endswith("Z")


def test_it_goes_on_where_it_stopped(start):
    whole, stopped = start("whole"), start("stopped")
    import_npy(*whole)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        import_npy(*stopped, stop)
    first = stopped[0] / "layer-000" / "shard-000000.tar"
    assert not (stopped[0] / "manifest.json").exists() and len(list(first.parent.iterdir())) == 1
    time = first.stat().st_mtime_ns
    reported: list[tuple[int, int]] = []
    import_npy(*stopped, lambda *counts: reported.append(counts))
    assert reported == [(16, 24), (24, 24)] and first.stat().st_mtime_ns == time
    assert contents(stopped[0]) == contents(whole[0])
    before = contents(stopped[0])
    assert import_npy(*stopped) == ShardSet(stopped[0]).set_id and contents(stopped[0]) == before


def test_another_file_of_that_name_is_another_plan(start, array, digits, tmp_path):
    root, _, _, _ = arguments = start()
    import_npy(*arguments)
    np.save(tmp_path / "published.npy", array ^ 1)
    opened = open_npy(tmp_path / "published.npy", digits)
    with pytest.raises(InputError, match=r"diffusion\.digest"):
        check_plan(
            root, import_plan(tmp_path / "published.npy", opened, digits, ShardsConfig(records=16))
        )


def test_a_damaged_sealed_set_is_not_mended(start):
    root, *_ = arguments = start()
    import_npy(*arguments)
    (root / "layer-000" / "shard-000001.tar").unlink()
    with pytest.raises(WorkError, match="clsp shards verify"):
        import_npy(*arguments)


WRONG = {
    "missing": (None, "no such file"),
    "empty": (b"", "does not begin as an .npy file"),
    "text": (b"key,value\n", "does not begin as an .npy file"),
    "later version": (b"\x93NUMPY\x03\x00\x10\x00\x00\x00", "does not begin as an .npy file"),
    "header": (b"\x93NUMPY\x01\x00\x05\x00{'a':", "does not begin as an .npy file"),
    "objects": (np.array([{}] * 40, dtype=object), "Python objects"),
    "dtype": (np.zeros(SHAPE, np.float32), "float32"),
    "signed": (np.zeros(SHAPE, np.int8), "int8"),
    "rank": (np.zeros((40, 8, 8, 3), np.uint8), r"shape \(40, 8, 8, 3\)"),
    "channels first": (np.zeros((40, 3, 3, 8, 8), np.uint8), "transpose"),
    "count": (np.zeros((39, *SHAPE[1:]), np.uint8), "of 39 anchors"),
    "height": (np.zeros((40, 3, 9, 8, 3), np.uint8), "9x8"),
    "width": (np.zeros((40, 3, 8, 32, 3), np.uint8), "8x32"),
    "no candidates": (np.zeros((40, 0, 8, 8, 3), np.uint8), "0 candidates"),
    "candidates": (np.zeros((40, 257, 8, 8, 3), np.uint8), "257 candidates"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_said_in_a_line(case, digits, tmp_path):
    content, message = WRONG[case]
    path = tmp_path / "x.npy"
    if isinstance(content, np.ndarray):
        np.save(path, content, allow_pickle=True)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        open_npy(path, digits)
    assert (
        str(path) in str(caught.value)
        and "expected" in str(caught.value)
        and "\n" not in str(caught.value)
    )


def test_a_file_that_is_cut_short_or_an_archive_is_refused(digits, array, tmp_path):
    np.save(tmp_path / "x.npy", array)
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "x.npy").write_bytes(content[:-1])
    with pytest.raises(InputError, match=f"{len(content) - 1} bytes, expected {len(content)}"):
        open_npy(tmp_path / "x.npy", digits)
    np.savez(tmp_path / "x.npz", array)
    with pytest.raises(InputError, match="does not begin"):
        open_npy(tmp_path / "x.npz", digits)
