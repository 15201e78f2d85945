"""Runs with a cache of decoded pixels: the same weights, whatever was decoded before, stopped, or in two processes."""

import os
import signal
import types

import pytest
import torch
from clsp.cli.main import run
from clsp.core import StopRequested, sha256_file
from clsp.shards import ShardSet
from clsp.shards.reading import device_pixels, pairs
from clsp.shards.reading.choose_pixels import open_pixels
from clsp.shards.reading.device_pixels import DevicePixels
from clsp.shards.reading.pixel_cache import PixelCache
from clsp.train import PretrainConfig, pretrain
from clsp.train.pretrain import Trainer
from conftest import SMALL_METHOD, SMALL_NETWORKS, settings
from processes import run_ranks, start_clsp_with_small_files

SMALL = {**SMALL_METHOD, "epochs": 3, "batch_size": 16, "warmup_epochs": 1, "workers": 0}


@pytest.fixture
def shards(shard_set, tmp_path, monkeypatch):
    monkeypatch.setenv("CLSP_CACHE", str(tmp_path / "cache"))
    return ShardSet(shard_set)


def weights(out) -> str:
    return sha256_file(out / "backbone" / "model.safetensors")


def train(shards, out, **changes) -> str:
    pretrain(shards, PretrainConfig(**{**SMALL, **changes}), out)
    return weights(out)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("source", ["shards", "inflation"])
def test_weights_are_those_without_a_cache(shards, tmp_path, source):
    chosen = {"synthetic": {"source": source}}
    expected = train(shards, tmp_path / "none", cache="none", **chosen)
    assert not (tmp_path / "cache").exists()

    kinds = [("memory", 0), ("memory", 1), ("auto", 0), ("device", 1)]
    for number, (kind, workers) in enumerate(kinds):
        out = tmp_path / f"{number}"
        assert train(shards, out, cache=kind, workers=workers, **chosen) == expected
        assert (out / "run.json").read_bytes() == (tmp_path / "none" / "run.json").read_bytes()
    assert list((tmp_path / "cache" / "pixels").glob("*/pixels.u8"))


def test_the_baseline_decodes_no_candidate(shards, tmp_path, monkeypatch):
    decode = pairs.decode_image
    decoded = []

    def counted(*arguments):
        decoded.append(arguments)
        return decode(*arguments)

    monkeypatch.setattr(pairs, "decode_image", counted)
    train(shards, tmp_path / "run", cache="memory", epochs=6, synthetic={"source": "none"})
    assert len(decoded) == 40


@pytest.mark.parametrize("cache", ["none", "memory"])
def test_a_run_stopped_with_a_cache_goes_on_with_and_without(shards, tmp_path, monkeypatch, cache):
    expected = train(shards, tmp_path / "whole", cache="none")
    original = Trainer.step

    def stop(self, step, batch):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop)
        with pytest.raises(StopRequested):
            train(shards, tmp_path / "parts", cache="memory")
    assert train(shards, tmp_path / "parts", cache=cache) == expected


@pytest.mark.slow
def test_two_processes_fill_one_cache(shards, shard_set, tmp_path):
    values = {**SMALL_NETWORKS, "pretrain.epochs": 8, "pretrain.batch_norm": "joint"}
    found = []
    for cache in ("none", "memory"):
        small = settings({**values, "pretrain.cache": cache})
        out = tmp_path / cache
        common = ["pretrain", "--recipe", "digits", "--shards", str(shard_set)]
        run_ranks(2, run, [*common, *small, "--out", str(out)])
        found.append(weights(out))

    assert found[0] == found[1]
    assert len(list((tmp_path / "cache" / "pixels").glob("*/pixels.u8"))) == 1


# Bad input


def test_a_cache_that_does_not_fit_ends_with_one_line(shards, shard_set, tmp_path):
    small = settings({**SMALL_NETWORKS, "pretrain.cache": "memory"})
    arguments = ["pretrain", "--recipe", "digits", *small, "--shards", shard_set]
    ended = start_clsp_with_small_files(20_000, *arguments, "--out", tmp_path / "run")
    assert ended.wait() == 2
    (line,) = ended.stderr.strip().splitlines()
    assert "too large for the disk (File too large): they need 30.7 kB" in line
    assert "choose pretrain.cache=none or another cache folder (CLSP_CACHE)" in line


def test_a_cache_that_cannot_be_made_is_refused_before_any_work(
    clsp, shard_set, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLSP_CACHE", str(tmp_path / "file"))
    small = settings({**SMALL_NETWORKS, "pretrain.cache": "memory"})
    arguments = ["pretrain", "--recipe", "digits", *small, "--shards", shard_set]
    found = clsp(*arguments, "--out", tmp_path / "run")
    assert found.returncode == 2 and not (tmp_path / "run").exists()
    assert f"{tmp_path / 'file'} cannot be" in found.stderr and len(found.stderr.splitlines()) == 1


def test_an_unknown_cache_is_refused():
    with pytest.raises(ValueError, match="'none', 'memory', 'device' or 'auto'"):
        PretrainConfig.model_validate({"cache": "disk"})


# Where pixels are kept makes no run another one


def test_records_of_earlier_versions_stay_as_they_are():
    record = PretrainConfig().recorded()
    assert "cache" not in record
    assert PretrainConfig.from_record(record).cache == "none"
    assert PretrainConfig(cache="memory").recorded() == record


# On a device


def test_the_array_of_a_device_gives_the_same_batches(shards):
    plain = shards.loader(batch_size=8, epochs=30, seed=1)
    cache = PixelCache(shards)
    cache.open()
    cached = shards.loader(batch_size=8, epochs=30, seed=1)
    cached.dataset.pixels = DevicePixels(cache, torch.device("cpu"))
    for one, other in zip(plain, cached, strict=True):
        assert one.keys == other.keys
        assert torch.equal(one.anchors_BCHW, other.anchors_BCHW)
        assert torch.equal(one.candidates_BCHW, other.candidates_BCHW)
    assert all(layer.there_R.all() for layer in cached.dataset.pixels.layers)


def test_a_device_that_is_too_small_is_told(shards, monkeypatch):
    cuda = types.SimpleNamespace(mem_get_info=lambda device: (9999, 9999))
    monkeypatch.setattr(device_pixels.torch, "cuda", cuda)
    with pytest.raises(Exception, match=r"too large for cuda:0: they need 30.7 kB, 10.0 kB free"):
        open_pixels(shards, "device", torch.device("cuda", 0))
