"""Decoded pixels in mapped files: the same batches, each image decoded once, and what is damaged is found."""

import errno
import json
import logging
import multiprocessing
import os
import re
import resource
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clsp.core import InputError, WorkError
from clsp.shards import BatchOrder, PairDataset, PairLoader, ShardSet, merge_sets
from clsp.shards.reading import choose_pixels, pairs, pixel_cache
from clsp.shards.reading.choose_pixels import check_pixels, open_pixels
from clsp.shards.reading.pixel_cache import PixelCache
from clsp.shards.remote.cache import RemoteStore

IMAGE = 8 * 8 * 3
SET = 40 * 4 * IMAGE
"""Bytes of a decoded image, and of 40 anchors with three candidates each."""


@pytest.fixture
def shards(shard_set, tmp_path):
    return ShardSet(shard_set, cache=tmp_path / "cache")


@pytest.fixture
def decoded(monkeypatch):
    """Count the images that are decoded."""
    counts = SimpleNamespace(images=0)
    decode = pairs.decode_image

    def counted(*arguments):
        counts.images += 1
        return decode(*arguments)

    monkeypatch.setattr(pairs, "decode_image", counted)
    return counts


def loader(shards, pixels, workers=0, rank=0, world_size=1, first=0, last=10, **options):
    order = BatchOrder(shards.shard_sizes, shards.plan.digest, 5, 8, rank, world_size)
    return PairLoader(PairDataset(shards, 5, pixels=pixels, **options), order, last, first, workers)


def contents(batches):
    found = []
    for batch in batches:
        images = (batch.anchors_BCHW, batch.candidates_BCHW)
        assert all(one.stride() == (IMAGE, 1, 24, 3) for one in images)
        tensors = (*images, batch.labels_B, batch.weights_B)
        found.append((batch.keys, *[one.numpy().tobytes() for one in tensors]))
    return found


def fill(shards):
    """Read so many epochs that every image was asked for, and return the cache."""
    cache = PixelCache(shards)
    cache.open()
    list(loader(shards, cache, last=200))
    return cache


def final_folder(shards):
    (folder,) = (shards.cache / "pixels").glob("*/finished.json")
    return folder.parent


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_while_it_fills_and_afterwards(shards, workers):
    expected = contents(loader(shards, None))
    cache = PixelCache(shards)
    cache.open()
    for _ in range(2):
        assert contents(loader(shards, cache, workers)) == expected
    assert contents(loader(shards, fill(shards), workers)) == expected
    assert contents(loader(shards, PixelCache(shards), workers, first=3)) == expected[3:]


def test_each_image_is_decoded_once_for_all_runs(shards, decoded):
    list(loader(shards, None, last=5))
    without = decoded.images
    decoded.images = 0

    cache = PixelCache(shards)
    cache.open()
    list(loader(shards, cache, last=5))
    assert decoded.images == without == 80  # the first epoch: as many as without it
    list(loader(shards, cache, last=200))
    assert decoded.images == 160  # 40 anchors with three candidates
    list(loader(shards, open_pixels(shards, "memory"), last=50))
    assert decoded.images == 160


def test_the_array_holds_the_images_of_the_set(shards):
    fill(shards)
    array = np.fromfile(final_folder(shards) / "pixels.u8", np.uint8).reshape(40, 4, 8, 8, 3)
    for position in range(40):
        assert np.array_equal(array[position, 0], shards.anchor(position))
        for candidate in range(3):
            expected = shards.candidate(position, candidate)
            assert np.array_equal(array[position, 1 + candidate], expected)


def test_layers_have_an_array_each_which_serves_with_and_without_the_others(
    make_set, tmp_path, decoded
):
    root = make_set(tmp_path / "set", candidates=2)
    other = make_set(tmp_path / "other", {"seed": 5}, candidates=2)
    merge_sets(ShardSet(root), ShardSet(other), tmp_path / "grown")
    fill(ShardSet(tmp_path / "grown", layers=["layer-000"], cache=tmp_path / "cache"))

    shards = ShardSet(tmp_path / "grown", cache=tmp_path / "cache")
    expected = contents(loader(shards, None, last=60))
    cache = PixelCache(shards)
    assert (cache.bytes, cache.bytes_needed) == (40 * 5 * IMAGE, 40 * 2 * IMAGE)
    cache.open()
    decoded.images = 0
    assert contents(loader(shards, cache, last=60)) == expected
    assert 0 < decoded.images <= 80  # of the other layer alone


def read_by_a_rank(shards, rank, results):
    batches = loader(shards, open_pixels(shards, "memory"), rank=rank, world_size=2, last=60)
    results.put((rank, contents(batches)))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_ranks_fill_one_array_together(shards):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    ranks = [context.Process(target=read_by_a_rank, args=(shards, r, results)) for r in range(2)]
    for process in ranks:
        process.start()
    found = dict(results.get(timeout=60) for _ in ranks)
    for process in ranks:
        process.join()

    for rank in range(2):
        expected = contents(loader(shards, None, rank=rank, world_size=2, last=60))
        assert found[rank] == expected
    assert len(list((shards.cache / "pixels").glob("*/pixels.u8"))) == 1


def be_killed_after_a_batch(shards):
    for _ in loader(shards, open_pixels(shards, "memory")):
        os.kill(os.getpid(), 9)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_another_goes_on_where_one_was_killed(shards, decoded):
    process = multiprocessing.get_context("fork").Process(
        target=be_killed_after_a_batch, args=(shards,)
    )
    process.start()
    process.join()
    assert process.exitcode == -9
    expected = contents(loader(shards, None))
    decoded.images = 0
    assert contents(loader(shards, open_pixels(shards, "memory"))) == expected
    list(loader(shards, open_pixels(shards, "memory"), last=200))
    assert decoded.images == 160 - 16  # a batch of 8 pairs was there


def test_of_a_set_at_a_url(web, tmp_path, decoded, no_pauses):
    shards = ShardSet(web.url, cache=tmp_path / "cache")
    expected = contents(loader(shards, None))
    fill(shards)
    assert final_folder(shards).is_relative_to(tmp_path / "cache")

    # The tars may go
    for tar in (tmp_path / "cache").glob("*/layer-*/*.tar"):
        tar.unlink()
    web.served.clear()
    again = ShardSet(web.url, cache=tmp_path / "cache")
    assert isinstance(again.store, RemoteStore)
    assert contents(loader(again, open_pixels(again, "memory"))) == expected
    assert not [name for name in web.served if name.endswith(".tar")]


# What is damaged


def test_pixels_that_the_index_does_not_know_are_refused(shards, monkeypatch):
    decode = pairs.decode_image

    def wrong(*arguments):
        return 255 - decode(*arguments)

    monkeypatch.setattr(pairs, "decode_image", wrong)
    with pytest.raises(WorkError, match=r"record train_\d+ has other pixels in \w+.webp than"):
        list(loader(shards, open_pixels(shards, "memory")))


def cut(folder):
    os.truncate(folder / "pixels.u8", SET - 1)


def flip(folder):
    with (folder / "pixels.u8").open("r+b") as file:
        file.seek(SET - 100)
        byte = file.read(1)
        file.seek(SET - 100)
        file.write(bytes([255 - byte[0]]))


def of_another_set(folder):
    owner = json.loads((folder / "owner.json").read_bytes())
    (folder / "owner.json").write_text(json.dumps({**owner, "plan": "0" * 64}))


def without_the_marker(folder):
    (folder / "finished.json").unlink()


@pytest.mark.parametrize("damage", [cut, flip, of_another_set, without_the_marker])
def test_a_damaged_array_is_made_anew_with_a_line(shards, damage, caplog, decoded):
    expected = contents(loader(shards, None))
    fill(shards)
    folder = final_folder(shards)
    damage(folder)
    decoded.images = 0

    cache = open_pixels(shards, "memory")
    assert contents(loader(shards, cache)) == expected
    assert decoded.images >= 80
    (line,) = [record.getMessage() for record in caplog.records]
    assert str(folder) in line and "decoded again" in line
    fill(shards)
    assert final_folder(shards) == folder


def test_a_copy_of_an_array_is_as_good(shards, decoded):
    fill(shards)
    shutil.copytree(shards.cache / "pixels", shards.cache / "copy", copy_function=shutil.copyfile)
    shutil.rmtree(shards.cache / "pixels")
    (shards.cache / "copy").rename(shards.cache / "pixels")
    decoded.images = 0
    list(loader(shards, open_pixels(shards, "memory")))
    assert decoded.images == 0


@pytest.mark.parametrize("lost", [1, 160])
def test_what_a_crash_of_the_machine_lost_is_decoded_again(shards, decoded, lost):
    """Marks whose pixels did not reach the disk, as after another start of the machine."""
    cache = PixelCache(shards)
    cache.open()
    list(loader(shards, cache, last=5))
    (owner,) = (shards.cache / "pixels").glob("*/owner.json")
    owner.write_text(json.dumps({**json.loads(owner.read_bytes()), "boot": "before"}))
    with (owner.parent / "pixels.u8").open("r+b") as file:
        file.seek((160 - lost) * IMAGE)
        file.write(bytes(lost * IMAGE))
    (owner.parent / "present.u8").write_bytes(b"\1" * 160)

    expected = contents(loader(shards, None, last=60))
    decoded.images = 0
    assert contents(loader(shards, open_pixels(shards, "memory"), last=60)) == expected
    assert 0 < decoded.images <= 160


# What does not fit


def test_too_large_for_the_disk_is_told_with_both_figures(shards, monkeypatch):
    monkeypatch.setattr(pixel_cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=9999))
    with pytest.raises(InputError, match=r"need 30.7 kB, 10.0 kB free in .*cache; choose pretrain"):
        open_pixels(shards, "memory")
    assert not shards.cache.exists()


def open_with_small_files(shards, kind, results):
    resource.setrlimit(resource.RLIMIT_FSIZE, (SET - 1, SET - 1))  # as `ulimit -f`
    try:
        results.put(contents(loader(shards, open_pixels(shards, kind))))
    except InputError as error:
        results.put(str(error))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
@pytest.mark.parametrize("kind", ["memory", "auto"])
def test_a_file_that_cannot_grow_leaves_nothing_behind(shards, kind):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    process = context.Process(target=open_with_small_files, args=(shards, kind, results))
    process.start()
    found = results.get(timeout=60)
    process.join()

    if kind == "auto":
        assert found == contents(loader(shards, None))
    else:
        assert re.search(
            r"too large for the disk \(File too large\): they need 30.7 kB, .* free in .*cache; choose",
            found,
        )
    assert not list((shards.cache / "pixels").glob("*/"))


def test_a_disk_that_is_full_after_all_costs_no_run(shards, monkeypatch, caplog):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    expected = contents(loader(shards, None))
    cache = PixelCache(shards)
    cache.open()
    monkeypatch.setattr(pixel_cache.os, "pwrite", full)
    assert contents(loader(shards, cache)) == expected
    (line,) = [record.getMessage() for record in caplog.records]
    assert "takes no more images (No space left on device)" in line


def test_a_folder_that_cannot_be_written_is_told(shards, monkeypatch):
    monkeypatch.setattr(pixel_cache.os, "access", lambda path, mode: not mode & os.W_OK)
    with pytest.raises(InputError, match=r"cache folder .* cannot be written; choose pretrain"):
        open_pixels(shards, "memory")


def test_a_finished_array_needs_no_folder_that_can_be_written(shards, monkeypatch, decoded):
    fill(shards)
    decoded.images = 0
    monkeypatch.setattr(pixel_cache.os, "access", lambda path, mode: not mode & os.W_OK)
    list(loader(shards, open_pixels(shards, "memory")))
    assert decoded.images == 0


def test_least_recently_used_arrays_make_room(make_set, tmp_path):
    sets = []
    for seed in range(3):
        root = make_set(tmp_path / f"set-{seed}", {"seed": seed})
        sets.append(ShardSet(root, cache=tmp_path / "cache"))

    arrays = []
    for number, shards in enumerate(sets[:2]):
        fill(shards)
        for folder in set((tmp_path / "cache" / "pixels").glob("*/")) - set(arrays):
            arrays.append(folder)
            os.utime(folder / "owner.json", (number, number))

    PixelCache(sets[2], most=2 * SET).open()
    assert [folder.exists() for folder in arrays] == [False, True]


def test_an_array_in_use_makes_no_room(make_set, tmp_path):
    sets = []
    for seed in range(2):
        root = make_set(tmp_path / f"set-{seed}", {"seed": seed})
        sets.append(ShardSet(root, cache=tmp_path / "cache"))
    used = PixelCache(sets[0])
    used.open()
    PixelCache(sets[1], most=1).open()
    assert used.layers[0].building.exists()


# auto


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AUTO_BYTES": 9999}, "no pixel cache: it would have 30.7 kB, auto takes 10.0 kB"),
        ({"available_memory": lambda: 2 * SET - 1}, "no pixel cache: .* of memory are free"),
        ({"shutil": SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=SET))}, "it needs"),
    ],
)
def test_auto_does_without_what_is_large_and_says_so(shards, monkeypatch, caplog, change, said):
    for name, value in change.items():
        monkeypatch.setattr(choose_pixels, name, value)
    with caplog.at_level(logging.WARNING):
        assert open_pixels(shards, "auto") is None
    assert re.search(said, caplog.text), caplog.text
    assert not shards.cache.exists()


def test_auto_takes_what_is_small(shards):
    assert isinstance(open_pixels(shards, "auto"), PixelCache)
    assert open_pixels(shards, "none") is None


def test_the_loader_of_a_set_takes_a_cache(shards):
    plain = shards.loader(batch_size=8, epochs=3, seed=2)
    cached = shards.loader(batch_size=8, epochs=3, seed=2, cache="memory")
    assert contents(cached) == contents(plain)
    device = open_pixels(shards, "device", torch.device("cpu"))
    assert isinstance(device, PixelCache)


def test_a_set_of_large_images_is_told_before_anything_is_made(shards, monkeypatch, caplog):
    """100 000 anchors with four positives, 256x256: 98.3 GB, on a disk with a tenth of it free."""
    size = 100_000 * 5 * 256 * 256 * 3
    monkeypatch.setattr(PixelCache, "bytes", size)
    monkeypatch.setattr(PixelCache, "bytes_needed", size)
    disk = SimpleNamespace(disk_usage=lambda _: SimpleNamespace(free=10 * 10**9))
    monkeypatch.setattr(pixel_cache, "shutil", disk)
    with caplog.at_level(logging.WARNING):
        assert open_pixels(shards, "auto") is None
    assert "no pixel cache: it would have 98.3 GB" in caplog.text
    with pytest.raises(InputError, match=r"they need 98.3 GB, 10.0 GB free"):
        check_pixels(shards, "memory")
    assert not shards.cache.exists()
