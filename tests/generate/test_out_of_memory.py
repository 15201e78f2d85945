"""Running out of memory, with a U-Net that has room for so many images only."""

import pytest
import torch
from clsp.core import WorkError
from clsp.generate import Sampler, SamplerConfig, make_plan, make_shards
from clsp.generate.out_of_memory import is_out_of_memory, largest_micro_batch
from clsp.shards import ShardsConfig, write_plan
from clsp.shards.format.event_log import read_log


@pytest.fixture
def small_memory(monkeypatch):
    """A limit on the images of a pass, as torch's CPU allocator and a GPU's say it."""
    from clsp.generate import sampler

    original = sampler.encode

    def limit(images, error):
        def encode(unet, x_BCHW, timestep, classes_B=None):
            if len(x_BCHW) > images:
                raise error
            return original(unet, x_BCHW, timestep, classes_B)

        monkeypatch.setattr(sampler, "encode", encode)

    return limit


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_the_line_names_the_largest_micro_batch_that_fits(
    model, digits, small_memory, tmp_path, error
):
    config = SamplerConfig(steps=2, micro_batch=16)
    plan = make_plan(digits, model, config, ShardsConfig(candidates=1, records=16))
    write_plan(tmp_path / "set", plan)
    small_memory(5, error)
    with pytest.raises(
        WorkError,
        match=r"out of memory on cpu with sampler.micro_batch=16; set sampler.micro_batch=4",
    ):
        make_shards(tmp_path / "set", plan, digits, Sampler(model, config))
    failed = [event for event in read_log(tmp_path / "set") if event["event"] == "failed"]
    assert len(failed) == 1 and failed[0]["shard"] == 0 and "micro_batch=4" in failed[0]["message"]
    assert not list((tmp_path / "set").glob("layer-000/*"))  # nothing of the shard stays


def test_where_nothing_fits_it_says_so(model, small_memory):
    small_memory(0, torch.OutOfMemoryError("CUDA out of memory"))
    assert largest_micro_batch(Sampler(model, SamplerConfig(steps=2, micro_batch=16)), 8, 8) == 0


def test_other_errors_are_not_memory():
    assert not is_out_of_memory(RuntimeError("shapes do not match")) and is_out_of_memory(
        MemoryError()
    )
