"""Fixtures: a tiny random diffusion model and shard sets made with it."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the hub
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from clsp.cli.main import run
from clsp.generate import DiffusionConfig, Sampler, SamplerConfig, build_unet, load_diffusion, make_plan, make_shards
from clsp.shards import Anchors, AnchorsConfig, ShardsConfig, write_plan
from diffusers import DDPMPipeline, DDPMScheduler

REPOSITORY = Path(__file__).parent.parent
TINY = DiffusionConfig(channels=(32, 32), attention=(False, True), blocks=1, dropout=0.0)


def save_random_model(folder: Path, size: int, config: DiffusionConfig = TINY) -> Path:
    torch.manual_seed(0)
    DDPMPipeline(build_unet(config, size), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"), 8)


@pytest.fixture(scope="session")
def model(model_folder):
    return load_diffusion(str(model_folder), 8)


@pytest.fixture(scope="session")
def digits() -> Anchors:
    return Anchors(AnchorsConfig(limit=40))


@pytest.fixture(scope="session")
def make_set(model, digits):
    """A function (folder, sampler settings, shard settings) that makes and seals a set of 40 digits."""

    def make(root: Path, sampler: dict | None = None, **shards) -> Path:
        config = SamplerConfig(**{"steps": 2, "micro_batch": 8, **(sampler or {})})
        shard_config = ShardsConfig(**{"candidates": 3, "records": 16, **shards})
        plan = make_plan(digits, model, config, shard_config)
        write_plan(root, plan)
        make_shards(root, plan, digits, Sampler(model, config))
        return root

    return make


@pytest.fixture(scope="session")
def shard_set(tmp_path_factory, make_set) -> Path:
    """A sealed set of 40 digits, K = 3, three shards; tests must not write to it."""
    return make_set(tmp_path_factory.mktemp("sets") / "set")


@pytest.fixture
def clsp(capfd):
    """Run a command line in this process: `clsp("shards", "make", …)` gives its `returncode`, `stdout` and `stderr`."""

    def run_clsp(*arguments) -> SimpleNamespace:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return SimpleNamespace(returncode=code, stdout=captured.out, stderr=captured.err)

    return run_clsp
