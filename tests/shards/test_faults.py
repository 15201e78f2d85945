"""Full disks, failing disks, kills and power failures at every write, fsync, rename and mkdir."""

import errno
import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clsp.core import write_file
from clsp.shards import (
    AnchorsConfig,
    ImageSource,
    Record,
    ShardsConfig,
    ShardSet,
    seal_if_complete,
    subset_set,
    verify_set,
    write_shard,
)
from clsp.shards.editing.extend import extension_plan, start_layer
from clsp.shards.format.commits import committed_shards, read_commit
from clsp.shards.format.layout import MANIFEST, commit_path, shard_path
from clsp.shards.format.plan import Plan, read_plan, source_plan, write_plan

pytestmark = pytest.mark.slow

ANCHORS, SAMPLE = 24, 45


class Disk:
    """Notes every operation; performs half of number `fail_at` (of writes) or nothing of it and then calls `fault`."""

    def __init__(self, monkeypatch, fail_at=0, half=False, fault=None):
        self.events: list[tuple[str, Path]] = []
        self.fail_at, self.half, self.fault = fail_at, half, fault
        self._replace, self._mkdir, self._open = Path.replace, Path.mkdir, Path.open
        disk = self

        def mkdir(path, *args, **kwargs):
            disk.step("mkdir", path)
            return disk._mkdir(path, *args, **kwargs)

        def replace(path, target):
            disk.step("rename", Path(target), path)
            return disk._replace(path, target)

        def fsync(descriptor):
            disk.step("fsync", Path(f"/proc/self/fd/{descriptor}").readlink())

        def opened(path, mode="r", *args, **kwargs):
            file = disk._open(path, mode, *args, **kwargs)
            return DiskFile(file, disk, path) if mode == "xb" else file

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(Path, "replace", replace)
        monkeypatch.setattr(Path, "mkdir", mkdir)
        monkeypatch.setattr(Path, "open", opened)

    def step(self, kind, path, *more, half=lambda: None):
        self.events.append((kind, path, *more))
        if len(self.events) == self.fail_at:
            if self.half:
                half()
            self.fault()


class DiskFile:
    """A file whose writes are operations of the disk."""

    def __init__(self, file, disk, path):
        self._file, self._disk, self._path = file, disk, path

    def write(self, content):
        def half():
            self._file.write(bytes(content)[: len(content) // 2])
            self._file.flush()

        self._disk.step("write", self._path, half=half)
        return self._file.write(content)

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@pytest.fixture(scope="module")
def plan(shard_set):
    base = read_plan(shard_set)
    source = source_plan(ImageSource(AnchorsConfig(limit=ANCHORS)))
    return base.revised(shards=ShardsConfig(records=8, candidates=2), source=source)


def records(digits, plan: Plan, shard: int):
    for index in plan.shard_range(shard):
        shape = (plan.shards.candidates, 8, 8, 3)
        yield Record(
            digits[index],
            np.random.default_rng([plan.start, index]).integers(0, 256, shape, np.uint8),
        )


def write_layer(root, plan, digits, layer):
    finished = committed_shards(root, plan, layer)
    for shard in range(plan.shard_count):
        if shard not in finished:
            write_shard(
                root, plan, layer, shard, records(digits, plan, shard), lambda: {"by": "test"}
            )
    assert seal_if_complete(root, plan, layer) is not None


@pytest.fixture(scope="module")
def jobs(plan, digits, tmp_path_factory):
    """name → (start folder or None, what is done to a folder, the folder after it without faults)."""
    folder = tmp_path_factory.mktemp("jobs")

    def make(root):
        write_plan(root, plan)
        write_layer(root, plan, digits, 0)

    def extend(root):
        layer, more = extension_plan(root, 3)
        if more is not None:
            start_layer(root, layer, more)
            write_layer(root, more, digits, layer)

    def subset(root):
        subset_set(ShardSet(folder / "extend"), root, np.arange(3, 20), {})

    make(folder / "make")
    shutil.copytree(folder / "make", folder / "extend")
    extend(folder / "extend")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "clsp.core.stamp.time",
            SimpleNamespace(strftime=lambda form, now: "now", gmtime=lambda: None),
        )
        subset(folder / "subset")
        starts = {"make": None, "extend": folder / "make", "subset": None}
        yield {
            name: (starts[name], do, folder / name)
            for name, do in locals().items()
            if name in starts
        }


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def finished(root):
    """Modification time and inode of tar and commit record of every finished shard."""
    found = {}
    for layer in range(2):
        plans = [root / ("plan.json" if layer == 0 else "layer-001.json")]
        if plans[0].exists():
            plan = read_plan(root, layer)
            for shard in committed_shards(root, plan, layer):
                for path in (shard_path(root, layer, shard), commit_path(root, layer, shard)):
                    found[path] = (path.stat().st_mtime_ns, path.stat().st_ino)
    return found


@pytest.fixture
def quick(monkeypatch):
    """No test but the order's notices whether bytes are really on the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def begin(start, root):
    if start is not None:
        shutil.copytree(start, root)


def recorded(job, root) -> list:
    start, do, _ = job
    begin(start, root)
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch)
        do(root)
    return disk.events


def chosen(events, count):
    """Numbers of operations: all that are no writes and of the writes as many as are asked for, with every second
    one to be half done."""
    others = [n for n, event in enumerate(events, 1) if event[0] != "write"]
    writes = [n for n, event in enumerate(events, 1) if event[0] == "write"]
    dice = random.Random(0)
    some = others + dice.sample(writes, max(0, min(len(writes), count - len(others))))
    some = some if len(some) <= count else dice.sample(some, count)
    return [
        (n, events[n - 1][0] == "write" and number % 2 == 0)
        for number, n in enumerate(sorted(some))
    ]


def check_resume(job, root, where):
    _, do, good = job
    before = finished(root)
    do(root)
    assert contents(root) == contents(good), where
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in before} == before, where
    assert not list(root.rglob("*.tmp")), where


@pytest.mark.parametrize(("name", "count"), [("make", SAMPLE), ("extend", 14), ("subset", 14)])
def test_a_failing_disk_costs_nothing_that_was_finished(jobs, quick, tmp_path, name, count):
    events = recorded(jobs[name], tmp_path / "recorded")
    for n, half in chosen(events, count):
        root = tmp_path / str(n)
        begin(jobs[name][0], root)
        code = errno.ENOSPC if n % 3 else errno.EIO

        def fault(code=code):
            raise OSError(code, os.strerror(code))

        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, n, half, fault)
            with pytest.raises(OSError, match=r"No space|Input/output"):
                jobs[name][1](root)
        assert not list(root.rglob("*.tmp")), (n, events[n - 1])
        check_resume(jobs[name], root, (n, events[n - 1]))
        shutil.rmtree(root)


@pytest.mark.parametrize(("name", "count"), [("make", SAMPLE), ("extend", 14), ("subset", 14)])
def test_a_kill_costs_nothing_that_was_finished(jobs, quick, tmp_path, name, count):
    events = recorded(jobs[name], tmp_path / "recorded")
    for n, half in chosen(events, count):
        root = tmp_path / str(n)
        begin(jobs[name][0], root)
        process = os.fork()
        if process == 0:
            try:
                with pytest.MonkeyPatch.context() as patch:
                    Disk(patch, n, half, lambda: os._exit(9))
                    jobs[name][1](root)
            finally:
                os._exit(1)
        _, status = os.waitpid(process, 0)
        assert os.waitstatus_to_exitcode(status) == 9, (n, events[n - 1])
        check_resume(jobs[name], root, (n, events[n - 1]))
        shutil.rmtree(root)


def check_order(root, events):
    """Fail where something takes its name before what it relies on is safe; returns the files that took their name."""
    last = {
        "write": {},
        "fsync": {},
        "mkdir": {},
        "rename": {},
    }  # kind → path → number of the last such operation
    synced, renamed = last["fsync"], last["rename"]
    for number, (kind, path, *source) in enumerate(events, 1):
        if kind == "rename":
            assert synced[source[0]] > last["write"][source[0]], (
                f"{path} took its name before its bytes were safe"
            )
            needed = dict(renamed) if path.name == MANIFEST else {}
            if path.parent.parent.name == "commits":
                tar = root / path.parent.name / f"{path.stem}.tar"
                needed[tar] = renamed[tar]
            needed |= {
                folder: when for folder, when in last["mkdir"].items() if folder in path.parents
            }
            for other, when in needed.items():
                assert when < synced[other.parent], f"{path} before the name of {other} was safe"
        last[kind][path] = number
    assert all(when < synced[path.parent] for path, when in renamed.items())
    return set(renamed), set(last["mkdir"])


@pytest.mark.parametrize("name", ["make", "extend", "subset"])
def test_a_power_failure_never_leaves_a_name_before_its_bytes(jobs, tmp_path, name):
    root = tmp_path / "new" / "deep" / "set"
    renamed, made = check_order(root, recorded(jobs[name], root))
    assert root / MANIFEST in renamed and verify_set(root, deep=True) == []
    if jobs[name][0] is None:
        assert {root, root.parent, root.parent.parent} <= made


def test_a_folder_that_another_writer_makes_meanwhile_is_fine(tmp_path, monkeypatch):
    make = Path.mkdir

    def slower(path, *args, **kwargs):
        make(path)
        return make(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", slower)
    write_file(tmp_path / "a" / "b" / "c", b"x")
    assert (tmp_path / "a" / "b" / "c").read_bytes() == b"x"


def test_a_cut_commit_record_is_no_commit(jobs, plan, tmp_path):
    shutil.copytree(jobs["make"][2], tmp_path / "set")
    path = commit_path(tmp_path / "set", 0, 1)
    path.write_bytes(path.read_bytes()[:-20])
    assert read_commit(tmp_path / "set", plan, 0, 1) is None
