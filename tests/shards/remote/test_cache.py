"""Reading a set's files from elsewhere: equal bytes, a bounded cache, several processes on it."""

import mmap
import multiprocessing
import os
import pickle
import subprocess
import sys

import pytest
from clsp.core import InputError, WorkError
from clsp.shards import read_manifest
from clsp.shards.remote.cache import LocalStore, RemoteStore, open_store
from clsp.shards.remote.push_pull import push
from places import S3Server, contents

pytestmark = pytest.mark.usefixtures("no_pauses")

TARS = [f"layer-000/shard-{shard:06d}.tar" for shard in range(10)]


@pytest.fixture
def files(ten_shards):
    return contents(ten_shards)


def cached_tars(cache) -> list[str]:
    return [name.split("/", 1)[1] for name in sorted(contents(cache)) if name.endswith(".tar")]


def check_cache(cache, files, most: int) -> None:
    tars = cached_tars(cache)
    assert 0 < sum(len(files[name]) for name in tars) <= most and ".tmp" not in str(
        sorted(contents(cache))
    )


def test_every_file_over_http_equals_the_local_one(web, files, ten_shards, tmp_path):
    store = open_store(web.url, tmp_path)
    assert (
        isinstance(store, RemoteStore)
        and store.location == web.url
        and store.manifest == read_manifest(ten_shards)
    )
    for _ in range(2):
        assert {name: store.path(name).read_bytes() for name in files} == files
    assert sorted(web.served) == sorted(files)  # each once
    assert store.path("plan.json") == store.root / "plan.json" and store.root.parent == tmp_path


@pytest.mark.slow
def test_every_file_from_s3_equals_the_local_one(files, ten_shards, tmp_path, monkeypatch):
    server = S3Server(tmp_path / "log")
    try:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem(use_listings_cache=False).mkdir("bucket")
        push(ten_shards, "s3://bucket/set")
        store = open_store("s3://bucket/set", tmp_path / "cache")
        assert {name: store.path(name).read_bytes() for name in files} == files
    finally:
        server.close()


def test_a_local_set_is_read_in_place(ten_shards, tmp_path):
    for location in (ten_shards, str(ten_shards), f"file://{ten_shards}"):
        store = open_store(location, tmp_path)
        assert isinstance(store, LocalStore) and store.path(TARS[0]) == ten_shards / TARS[0]
        assert store.root == ten_shards and store.location == str(ten_shards)
    assert list(tmp_path.iterdir()) == []


def test_the_cache_keeps_the_tars_that_were_used_last(web, files, tmp_path):
    room = 3 * max(len(files[name]) for name in TARS)
    store = open_store(web.url, tmp_path, room)
    for name in (*files, *TARS):
        assert store.path(name).read_bytes() == files[name]
        assert sum(len(files[tar]) for tar in cached_tars(tmp_path)) <= room
    assert cached_tars(tmp_path)[-1] == TARS[-1]
    assert set(files) - set(TARS) <= {
        name.split("/", 1)[1] for name in contents(tmp_path)
    }  # the rest is kept
    first, *_ = cached_tars(tmp_path)
    store.path(first)
    web.served.clear()
    store.path(TARS[0])
    store.path(first)
    assert web.served == [TARS[0]]  # the oldest by name was used, so another one made room


def test_a_tar_larger_than_the_cache_is_still_readable_and_a_mapped_one_survives(
    web, files, tmp_path
):
    store = open_store(web.url, tmp_path, 1)
    with store.path(TARS[0]).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    assert store.path(TARS[1]).read_bytes() == files[TARS[1]]
    assert cached_tars(tmp_path) == [TARS[1]] and mapped[:] == files[TARS[0]]
    assert store.path(TARS[0]).read_bytes() == files[TARS[0]]
    mapped.close()


READ = """
import sys
from pathlib import Path
from clsp.shards.remote.cache import open_store
store = open_store(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
for name in sys.argv[4:]:
    for _ in range(100):
        try:
            content = store.path(name).read_bytes()
            break
        except FileNotFoundError:
            pass
    print(name, len(content))
"""


def reader(*arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", READ, *map(str, arguments)], stdout=subprocess.PIPE, text=True
    )


def test_processes_share_one_cache(web, files, tmp_path):
    readers = [reader(web.url, tmp_path, 1 << 30, *TARS) for _ in range(3)]
    expected = "".join(f"{name} {len(files[name])}\n" for name in TARS)
    assert [process.communicate()[0] for process in readers] == [expected] * 3
    assert sorted(name for name in web.served if name in TARS) == TARS  # each was fetched once
    open_store(web.url, tmp_path).path(TARS[3])
    assert web.served.count(TARS[3]) == 1


def test_processes_share_one_small_cache(web, files, tmp_path):
    room = 3 * max(len(files[name]) for name in TARS)
    readers = [reader(web.url, tmp_path, room, *order) for order in (TARS * 3, TARS[::-1] * 3)]
    assert [len(process.communicate()[0].split("\n")) for process in readers] == [31, 31]
    check_cache(tmp_path, files, room)


def test_workers_get_the_store_by_pickle_or_fork(web, files, tmp_path):
    store = open_store(web.url, tmp_path)
    assert pickle.loads(pickle.dumps(store)).path(TARS[0]).read_bytes() == files[TARS[0]]
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=lambda: store.path(TARS[1]))
    worker.start()
    worker.join(30)
    assert worker.exitcode == 0 and (store.root / TARS[1]).read_bytes() == files[TARS[1]]


@pytest.mark.parametrize("fault", ["cut", "flip"])
def test_damaged_bytes_never_enter_the_cache(fault, web, files, tmp_path):
    store = open_store(web.url, tmp_path)
    web.faults[TARS[0]] = [fault] * 100
    with pytest.raises(WorkError, match=TARS[0]):
        store.path(TARS[0])
    assert cached_tars(tmp_path) == [] and ".tmp" not in str(sorted(contents(tmp_path)))
    web.faults[TARS[0]] = [fault]
    assert store.path(TARS[0]).read_bytes() == files[TARS[0]]
    os.truncate(store.path(TARS[0]), 10)
    assert store.path(TARS[0]).read_bytes() == files[TARS[0]]


def test_what_is_not_there(web, tmp_path):
    with pytest.raises(InputError, match="expected a sealed shard set"):
        open_store(f"{web.url}/nothing", tmp_path)
    with pytest.raises(WorkError, match="no file"):
        open_store(web.url, tmp_path).path("layer-009/shard-000000.tar")


def test_the_cache_folder_follows_the_environment(web, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "platform"))
    monkeypatch.delenv("CLSP_CACHE", raising=False)
    assert open_store(web.url).path("plan.json").is_relative_to(tmp_path / "platform" / "clsp")
    monkeypatch.setenv("CLSP_CACHE", str(tmp_path / "mine"))
    assert open_store(web.url).path("plan.json").is_relative_to(tmp_path / "mine")
