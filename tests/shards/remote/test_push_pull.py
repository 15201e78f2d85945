"""Moving sets: what arrives, in what order, after which interruptions, and what is left alone."""

import json
import os
import shutil
import sys
from types import SimpleNamespace

import pytest
from clsp.core import InputError, StopRequested, WorkError
from clsp.shards import read_manifest, verify_set
from clsp.shards.remote.hub_push import push_to_hub
from clsp.shards.remote.push_pull import pull, push
from places import S3Server, contents

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_pauses")]

TAR, COMMIT = "layer-000/shard-000002.tar", "commits/layer-000/shard-000002.json"


@pytest.fixture(scope="module")
def s3_server(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.close()


@pytest.fixture
def s3(s3_server, request, monkeypatch):
    """An S3 bucket of the test's own: `url`, `fs`, and `requests(method)`."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the methods it was made with
    bucket = "b" + str(abs(hash(request.node.nodeid)))
    fs = s3fs.S3FileSystem(use_listings_cache=False)
    fs.mkdir(bucket)
    return SimpleNamespace(
        url=f"s3://{bucket}/sets/one",
        base=f"{bucket}/sets/one",
        fs=fs,
        requests=lambda method: s3_server.requests(method, f"{bucket}/sets/one"),
    )


def stop_after(files: int):
    def report(done: int, total: int) -> None:
        if done >= files:
            raise StopRequested

    return report


def test_round_trip_through_s3(s3, ten_shards, tmp_path):
    seen = []
    set_id = push(ten_shards, s3.url, lambda done, total: seen.append((done, total)))
    assert set_id == read_manifest(ten_shards).set_id
    files = len(contents(ten_shards))
    assert seen[-1] == (files, files) and sorted(seen) == seen
    assert pull(s3.url, tmp_path / "back", expect=set_id) == set_id
    assert contents(tmp_path / "back") == contents(ten_shards)
    assert verify_set(tmp_path / "back", deep=True) == []


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_round_trip_through_a_folder(scheme, ten_shards, tmp_path):
    push(ten_shards, f"{scheme}{tmp_path}/there")
    assert contents(tmp_path / "there") == contents(ten_shards)
    pull(f"{scheme}{tmp_path}/there/", tmp_path / "back")
    assert contents(tmp_path / "back") == contents(ten_shards)


def test_a_push_writes_the_plan_first_records_after_their_tars_and_the_seal_last(s3, ten_shards):
    push(ten_shards, s3.url)
    order = s3.requests("PUT")
    assert sorted(order) == sorted(contents(ten_shards))
    assert order[0] == "plan.json" and order[-1] == "manifest.json"
    for shard in range(10):
        tar, record = (
            f"layer-000/shard-{shard:06d}.tar",
            f"commits/layer-000/shard-{shard:06d}.json",
        )
        assert order.index(tar) < order.index(record)


def test_an_interrupted_push_goes_on_without_sending_again(s3, ten_shards):
    with pytest.raises(StopRequested):
        push(ten_shards, s3.url, stop_after(9), workers=2)
    first = s3.requests("PUT")
    assert 9 <= len(first) <= 13 and not s3.fs.exists(f"{s3.base}/manifest.json")
    gets = len(s3.requests("GET"))
    push(ten_shards, s3.url)
    both = s3.requests("PUT")
    assert s3.fs.exists(f"{s3.base}/manifest.json")
    # At most the files that were on their way when it was interrupted are sent twice.
    assert len(both) - len(set(both)) <= 2 and set(both) == set(contents(ten_shards))
    assert not [
        name for name in s3.requests("GET")[gets:] if name == first[1] and name.endswith(".tar")
    ]


def test_a_second_push_sends_nothing_and_reads_no_tar(s3, ten_shards):
    push(ten_shards, s3.url)
    puts, gets = len(s3.requests("PUT")), len(s3.requests("GET"))
    push(ten_shards, s3.url)
    assert len(s3.requests("PUT")) == puts
    assert not [name for name in s3.requests("GET")[gets:] if name.endswith(".tar")]


def test_a_pull_over_http_goes_on_where_it_was_interrupted(web, ten_shards, tmp_path):
    with pytest.raises(StopRequested):
        pull(web.url, tmp_path / "set", report=stop_after(9), workers=2)
    here = contents(tmp_path / "set")
    assert 9 <= len(here) <= 13 and "plan.json" in here and "manifest.json" not in here
    assert not [name for name in here if ".tmp" in name]
    web.served.clear()
    pull(web.url, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(ten_shards)
    again = set(web.served) & set(here)
    assert again <= {"plan.json"}  # read to see whose the folder is


@pytest.mark.parametrize("fault", ["cut", "short", "flip", "long", "error"])
def test_a_fault_on_the_way_is_found_and_the_file_fetched_again(fault, web, ten_shards, tmp_path):
    web.faults[TAR] = [fault] * 3
    pull(web.url, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(ten_shards) and web.faults[TAR] == []


@pytest.mark.parametrize("fault", ["cut", "flip", "long"])
def test_a_lasting_fault_never_lands(fault, web, tmp_path):
    web.faults[TAR] = [fault] * 100
    with pytest.raises(WorkError, match=TAR):
        pull(web.url, tmp_path / "set")
    here = contents(tmp_path / "set")
    assert not {TAR, COMMIT, "manifest.json"} & set(here) and not [
        name for name in here if ".tmp" in name
    ]


def test_a_damaged_byte_at_the_source_never_lands(s3, ten_shards, tmp_path):
    push(ten_shards, s3.url)
    content = bytearray(s3.fs.cat_file(f"{s3.base}/{TAR}"))
    content[1000] ^= 1
    s3.fs.pipe_file(f"{s3.base}/{TAR}", bytes(content))
    with pytest.raises(WorkError, match=TAR):
        pull(s3.url, tmp_path / "set")
    assert (
        not (tmp_path / "set" / TAR).exists() and not (tmp_path / "set" / "manifest.json").exists()
    )


def test_what_was_damaged_here_is_fetched_again(ten_shards, tmp_path):
    shutil.copytree(ten_shards, tmp_path / "set")
    (tmp_path / "set" / TAR).write_bytes(b"damaged")
    (tmp_path / "set" / COMMIT).write_bytes(b"{")
    pull(str(ten_shards), tmp_path / "set")
    assert contents(tmp_path / "set") == contents(ten_shards)


def test_a_damaged_local_file_is_not_pushed(s3, ten_shards, tmp_path):
    shutil.copytree(ten_shards, tmp_path / "set")
    with (tmp_path / "set" / TAR).open("r+b") as file:
        file.write(b"x")
    with pytest.raises(WorkError, match="verify"):
        push(tmp_path / "set", s3.url)
    assert not {TAR, COMMIT, "manifest.json"} & set(s3.requests("PUT"))


def test_a_place_that_changes_bytes_is_found_by_reading_back(s3, ten_shards, monkeypatch):
    import s3fs

    sound = s3fs.S3FileSystem._put_file

    async def damage(self, lpath, rpath, **options):
        if not rpath.endswith(TAR):
            return await sound(self, lpath, rpath, **options)
        return await self._pipe_file(rpath, b"x" * os.path.getsize(lpath))  # noqa: PTH202

    monkeypatch.setattr(s3fs.S3FileSystem, "_put_file", damage)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(WorkError, match=TAR):
        push(ten_shards, s3.url)
    assert not s3.fs.exists(f"{s3.base}/{TAR}") and not s3.fs.exists(f"{s3.base}/manifest.json")


def test_another_set_at_the_destination_is_left_alone(s3, ten_shards, shard_set, web, tmp_path):
    push(shard_set, s3.url)
    before = {path: s3.fs.cat_file(path) for path in s3.fs.find(s3.base)}
    with pytest.raises(InputError, match="another set"):
        push(ten_shards, s3.url)
    assert {path: s3.fs.cat_file(path) for path in s3.fs.find(s3.base)} == before
    shutil.copytree(shard_set, tmp_path / "other")
    with pytest.raises(InputError, match="another set"):
        pull(web.url, tmp_path / "other")
    with pytest.raises(InputError, match="another set"):
        push(ten_shards, str(tmp_path / "other"))
    assert contents(tmp_path / "other") == contents(shard_set)


def test_a_folder_or_prefix_with_something_else_is_left_alone(s3, ten_shards, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    s3.fs.pipe_file(f"{s3.base}/notes.txt", b"mine")
    for attempt in (
        lambda: pull(str(ten_shards), tmp_path),
        lambda: push(ten_shards, str(tmp_path)),
        lambda: push(ten_shards, s3.url),
    ):
        with pytest.raises(InputError, match="no shard set"):
            attempt()
    assert contents(tmp_path) == {"notes.txt": b"mine"} and s3.requests("PUT") == ["notes.txt"]


def test_another_run_of_the_same_plan_is_left_alone(s3, ten_shards, tmp_path):
    record = json.loads((ten_shards / COMMIT).read_bytes())
    other = json.dumps({**record, "sha256": "0" * 64}).encode()
    (tmp_path / "set" / COMMIT).parent.mkdir(parents=True)
    for name, content in (("plan.json", (ten_shards / "plan.json").read_bytes()), (COMMIT, other)):
        (tmp_path / "set" / name).write_bytes(content)
        s3.fs.pipe_file(f"{s3.base}/{name}", content)
    before, puts = contents(tmp_path / "set"), s3.requests("PUT")
    for attempt in (
        lambda: pull(str(ten_shards), tmp_path / "set"),
        lambda: push(ten_shards, s3.url),
    ):
        with pytest.raises(InputError, match="another run"):
            attempt()
    assert contents(tmp_path / "set") == before and s3.requests("PUT") == puts


def older_state(root, to):
    """The same set before its card, and one file that its seal knew, were there."""
    shutil.copytree(root, to)
    manifest = json.loads((to / "manifest.json").read_bytes())
    del manifest["files"][COMMIT]
    manifest["files"]["README.md"]["sha256"] = "0" * 64
    text = json.dumps(manifest, sort_keys=True, indent=2, ensure_ascii=False) + "\n"
    (to / "manifest.json").write_text(text, encoding="utf-8")
    (to / COMMIT).unlink()
    (to / "README.md").write_text("older")
    return to


def test_an_earlier_state_is_updated_and_a_later_one_kept(s3, ten_shards, tmp_path):
    old = older_state(ten_shards, tmp_path / "old")
    for name, content in contents(old).items():
        s3.fs.pipe_file(f"{s3.base}/{name}", content)
    push(ten_shards, s3.url)
    assert {
        path.removeprefix(f"{s3.base}/"): s3.fs.cat_file(path) for path in s3.fs.find(s3.base)
    } == contents(ten_shards)
    older_again = older_state(ten_shards, tmp_path / "again")
    pull(s3.url, old)
    assert contents(old) == contents(ten_shards)
    with pytest.raises(InputError, match="later"):
        pull(str(older_again), old)
    assert contents(old) == contents(ten_shards)


def test_expect_pins_the_set(s3, ten_shards, tmp_path):
    with pytest.raises(InputError, match="expected 00"):
        push(ten_shards, s3.url, expect="00")
    with pytest.raises(InputError, match="expected 00"):
        pull(str(ten_shards), tmp_path / "set", expect="00")
    assert not (tmp_path / "set").exists() and s3.requests("PUT") == []


def test_a_manifest_that_climbs_out_is_refused(ten_shards, tmp_path):
    shutil.copytree(ten_shards, tmp_path / "evil")
    manifest = json.loads((tmp_path / "evil/manifest.json").read_bytes())
    manifest["files"]["../outside"] = {"bytes": 1, "sha256": "0" * 64}
    (tmp_path / "evil/manifest.json").write_text(
        json.dumps(manifest, sort_keys=True, indent=2) + "\n"
    )
    with pytest.raises(InputError, match="outside"):
        pull(str(tmp_path / "evil"), tmp_path / "set")
    assert not (tmp_path / "set").exists()


def test_addresses_that_cannot_work(monkeypatch, s3, web, ten_shards, tmp_path):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for url, message in (
        ("gs://bucket/set", r"gs:// needs gcsfs; run: pip install 'clsp\[remote\]'"),
        ("nonsense://set", "nonsense"),
        (s3.url, "expected a sealed shard set"),
        (f"{web.url}/nothing", "expected a sealed shard set"),
        (str(tmp_path / "nothing"), "expected a sealed shard set"),
    ):
        with pytest.raises(InputError, match=message):
            pull(url, tmp_path / "set")
    with pytest.raises(InputError, match="written"):
        push(ten_shards, web.url)
    with pytest.raises(InputError, match="hf://datasets/USER/NAME"):
        push(ten_shards, "hf://me/set")
    assert not (tmp_path / "set").exists()
    s3.fs.pipe_file(f"{s3.base}/plan.json", b"{}")
    with pytest.raises(InputError, match="not finished"):
        pull(s3.url, tmp_path / "set")


class FakeHub:
    """The part of HfApi that is used, on a dictionary; `damage` names a file that arrives with other bytes."""

    def __init__(self):
        self.files, self.commits, self.damage, self.created = {}, [], None, []

    def create_repo(self, name, *, repo_type, exist_ok):
        assert exist_ok and repo_type == "dataset"
        self.created.append(name)

    def get_paths_info(self, name, paths, *, repo_type, revision):
        from huggingface_hub.hf_api import RepoFile

        return [self._info(RepoFile, path) for path in paths if path in self.files]

    def _info(self, kind, path):
        import hashlib

        content = self.files[path]
        if path.endswith((".tar", ".parquet")):
            digest = hashlib.sha256(content).hexdigest()
            lfs = {"size": len(content), "oid": digest, "pointerSize": 1}
            return kind(path=path, size=len(content), oid="pointer", lfs=lfs)
        blob = hashlib.sha1(b"blob " + str(len(content)).encode() + b"\0" + content).hexdigest()
        return kind(path=path, size=len(content), oid=blob)

    def create_commit(self, name, operations, *, commit_message, repo_type, revision):
        from pathlib import Path

        self.commits.append([operation.path_in_repo for operation in operations])
        for operation in operations:
            content = Path(operation.path_or_fileobj).read_bytes()
            damaged = operation.path_in_repo == self.damage
            self.files[operation.path_in_repo] = bytes(len(content)) if damaged else content

    def hf_hub_download(self, name, path, *, repo_type, revision):
        self.downloads.mkdir(exist_ok=True)
        (self.downloads / "file").write_bytes(self.files[path])
        return str(self.downloads / "file")


def test_the_hub_gets_few_commits_and_the_seal_alone_in_the_last(ten_shards, monkeypatch):
    monkeypatch.setattr("clsp.shards.remote.hub_push.FILES_PER_COMMIT", 7)
    hub = FakeHub()
    push_to_hub(ten_shards, "hf://datasets/me/digits", api=hub)
    assert hub.files == contents(ten_shards) and hub.created == ["me/digits"]
    assert max(map(len, hub.commits)) == 7 and len(hub.commits) == -(-(len(hub.files) - 1) // 7) + 1
    order = [name for commit in hub.commits for name in commit]
    assert order[0] == "plan.json" and hub.commits[-1] == ["manifest.json"]
    for shard in range(10):
        assert order.index(f"layer-000/shard-{shard:06d}.tar") < order.index(
            f"commits/layer-000/shard-{shard:06d}.json"
        )
    commits = len(hub.commits)
    push_to_hub(ten_shards, "hf://datasets/me/digits", api=hub)
    assert len(hub.commits) == commits


def test_the_hub_is_resumed_updated_and_checked(ten_shards, shard_set, tmp_path, monkeypatch):
    monkeypatch.setattr("clsp.shards.remote.hub_push.FILES_PER_COMMIT", 7)
    url, hub = "hf://datasets/me/digits/sub", FakeHub()
    hub.downloads = tmp_path / "downloads"
    hub.damage = f"sub/{TAR}"
    with pytest.raises(WorkError, match=TAR):
        push_to_hub(ten_shards, url, api=hub)
    assert "sub/manifest.json" not in hub.files
    hub.damage, hub.commits = None, []
    del hub.files[f"sub/{TAR}"]
    push_to_hub(ten_shards, url, api=hub)
    assert {name.removeprefix("sub/"): content for name, content in hub.files.items()} == contents(
        ten_shards
    )
    with pytest.raises(InputError, match="another set"):
        push_to_hub(shard_set, url, api=hub)
    hub.files = {
        f"sub/{name}": value
        for name, value in contents(older_state(ten_shards, tmp_path / "old")).items()
    }
    push_to_hub(ten_shards, url, api=hub)
    assert {name.removeprefix("sub/"): content for name, content in hub.files.items()} == contents(
        ten_shards
    )
