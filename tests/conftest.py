"""Fixtures: a tiny random diffusion model and shard sets made with it."""

import os
import tempfile

TEMPORARY = "clsp-tests-"
if TEMPORARY not in os.environ.get(
    "TMPDIR", ""
):  # what launchers and libraries leave there goes with it
    os.environ["TMPDIR"] = tempfile.mkdtemp(prefix=TEMPORARY)
    tempfile.tempdir = None
os.environ["HF_HUB_OFFLINE"] = "1"  # no test reaches for the hub
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hub-")  # or for what the user has cached
os.environ["CLSP_CACHE"] = tempfile.mkdtemp(prefix="cache-")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import multiprocessing.util
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState
from clsp.cli.main import run
from clsp.generate import (
    DiffusionConfig,
    Sampler,
    SamplerConfig,
    build_unet,
    load_diffusion,
    make_plan,
    make_shards,
    train_diffusion,
)
from clsp.shards import AnchorsConfig, ImageSource, ShardsConfig, write_plan
from clsp.shards.remote import verified_copy as arrival
from clsp.train import PretrainConfig, build_backbone
from clsp.train.backbone import save_backbone
from diffusers import DDPMPipeline, DDPMScheduler
from places import WebServer

REPOSITORY = Path(__file__).parent.parent
SMALL_NETWORKS = {
    "diffusion.steps": 4,
    "diffusion.batch_size": 16,
    "sampler.steps": 2,
    "pretrain.epochs": 2,
    "pretrain.batch_size": 16,
    "pretrain.backbone_kwargs": "{channels=[8,8,8,8],layers=[1,1,1,1]}",
    "pretrain.projector_hidden": 16,
    "pretrain.workers": 0,
    "pretrain.knn_epochs": 0,
    "pretrain.trackers": "[]",
    "linear_eval.epochs": 2,
    "linear_eval.milestones": "[1]",
}
"""Settings that make every stage of the pipeline real but quick."""

SMALL_METHOD = {
    "backbone_kwargs": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
    "projector_hidden": 16,
    "projector_out": 8,
    "predictor_hidden": 16,
    "trackers": [],
}
"""Settings of `[pretrain]` that make every method small."""

ON_CPU = {**os.environ, "ACCELERATE_USE_CPU": "true"}
"""The environment of several processes without a GPU."""

TINY = DiffusionConfig(channels=(32, 32), attention=(False, True), blocks=1, dropout=0.0)


def pytest_sessionfinish(session, exitstatus):
    """Remove this session's temporary folder, unless a test failed that one may want to look into."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    if session.testsfailed:
        print(f"\nkept for a look: {os.environ['TMPDIR']}")
    else:
        multiprocessing.util._run_finalizers()  # they would miss their own folder in there
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)


@pytest.fixture(params=["yes", "no"])
def bf16(request, monkeypatch) -> bool:
    """True and False: what `computes_bf16` says in the test and the processes it starts, whatever the machine."""
    monkeypatch.setenv("CLSP_BF16", request.param)
    return request.param == "yes"


def save_random_model(folder: Path, size: int, config: DiffusionConfig = TINY) -> Path:
    torch.manual_seed(0)
    DDPMPipeline(build_unet(config, size), DDPMScheduler()).save_pretrained(folder)
    return folder


@pytest.fixture
def forget_precision():
    """A function after which this process may compute in another precision; accelerate allows one to a process."""

    def forget() -> None:
        AcceleratorState._reset_state(reset_partial_state=True)

    yield forget
    forget()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    return save_random_model(tmp_path_factory.mktemp("model"), 8)


@pytest.fixture(scope="session")
def model(model_folder):
    return load_diffusion(str(model_folder), 8)


@pytest.fixture(scope="session")
def trained_model_folder(tmp_path_factory) -> Path:
    """A small model trained for seconds: its images are digits of a sort, with the values of real ones."""
    settings = {
        "steps": 300,
        "batch_size": 32,
        "warmup_steps": 20,
        "lr": 5e-3,
        "lr_schedule": "cosine",
        "snr_gamma": 5,
    }
    config = TINY.model_copy(update={**settings, "ema_decay": 0.98, "attention": (False, False)})
    return train_diffusion(
        ImageSource(AnchorsConfig()), config, tmp_path_factory.mktemp("trained") / "model"
    )


@pytest.fixture(scope="session")
def trained_model(trained_model_folder):
    return load_diffusion(str(trained_model_folder), 8)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A small random backbone for images of 8x8, as a run's folder holds it."""
    config = PretrainConfig(**SMALL_METHOD)
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    save_backbone(build_backbone(config), config, 8, folder)
    return folder


@pytest.fixture(scope="session")
def digits() -> ImageSource:
    return ImageSource(AnchorsConfig(limit=40))


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


@pytest.fixture(scope="session")
def ten_shards(tmp_path_factory, make_set) -> Path:
    """A sealed set of 40 digits in ten shards; tests must not write to it."""
    return make_set(tmp_path_factory.mktemp("ten") / "set", records=4)


@pytest.fixture
def web(ten_shards):
    """An HTTP server of that set."""
    server = WebServer(ten_shards)
    yield server
    server.close()


@pytest.fixture
def no_pauses(monkeypatch):
    """No waiting between the attempts of a transfer."""
    monkeypatch.setattr(arrival, "BACKOFF", 0.01)


@pytest.fixture
def clsp(capfd):
    """Run a command line in this process: `clsp("shards", "make", …)` gives its `returncode`, `stdout` and `stderr`."""

    def run_clsp(*arguments) -> SimpleNamespace:
        capfd.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return SimpleNamespace(returncode=code, stdout=captured.out, stderr=captured.err)

    return run_clsp


def settings(values: dict) -> list[str]:
    return [f"--set={key}={value}" for key, value in values.items()]


def launcher(processes: int) -> list[str]:
    """The beginning of a command line for so many processes; `-m module` or a file follows."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
    ]


def run_make(*arguments: str, args: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the repository's Makefile in another folder, with this environment in the place of a new one."""
    binaries = Path(sys.executable).parent
    command = [
        "make",
        "-f",
        REPOSITORY / "Makefile",
        f"BIN={binaries}",
        "-o",
        "setup",
        *arguments,
        f"ARGS={' '.join(args)}",
    ]
    environment = {**os.environ, "MAKEFLAGS": "", "MAKELEVEL": ""}
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
