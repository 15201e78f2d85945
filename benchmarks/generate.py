"""Speed of stage 1 on the U-Net of the cifar10 recipe: every factor alone and all together, and what is not U-Net.

    python benchmarks/generate.py --images /data/cifar10 --json generate.json

A denoising step costs the same at any place of the schedule, so each side runs `--steps` of its steps and the time of
all of them is calculated. The sides take turns; figures are medians over the rounds. The weights are random.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clsp.core import computes_bf16
from clsp.generate import (
    DiffusionConfig,
    DiffusionModel,
    Sampler,
    SamplerConfig,
    build_unet,
    make_plan,
    make_shards,
)
from clsp.shards import AnchorsConfig, ImageSource, ShardsConfig, write_plan
from made_sets import CANDIDATES, SIZE, load_images, matrix_rate, seconds, verdict
from torch.utils.flop_counter import FlopCounterMode

PAPER: dict[str, Any] = {
    "scheduler": "ddim",
    "steps": 100,
    "eta": 0.1,
    "share_anchor": False,
    "dtype": "float32",
}
SHARED = {"share_anchor": True}
SOLVER = {"scheduler": "unipc", "steps": SamplerConfig().steps, "eta": 0.0}
HALF = {"dtype": "bfloat16"}
COMPILED = {"compile": True}
NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
TARGETS = {"shared": 1.15, "overhead": 3.0, "all": 6.0, "all, bf16": 10.0}


def build_model(config: DiffusionConfig | None = None) -> DiffusionModel:
    torch.manual_seed(0)
    unet = build_unet(config or DiffusionConfig(), SIZE).eval().requires_grad_(False)
    return DiffusionModel(unet, NOISE_SCHEDULE, "benchmark", "0" * 64)


def sides(compiled: bool) -> dict[str, dict[str, Any]]:
    """Return the settings that are compared: the paper's, each change alone, all of them together."""
    found = {"paper": {}, "shared anchor": SHARED, "solver": SOLVER}
    together = {**SHARED, **SOLVER}
    if computes_bf16():
        found["bf16"] = HALF
        together = {**together, **HALF}

    if compiled:
        found["compile"] = COMPILED
        together = {**together, **COMPILED}

    return {name: {**PAPER, **change} for name, change in {**found, "all": together}.items()}


def measure_factors(
    images_BHWC: np.ndarray, options: argparse.Namespace, device: str
) -> dict[str, Any]:
    """Measure the images per second of every side."""
    keys = [f"train_{n:08d}" for n in range(len(images_BHWC))]
    rates = {}
    runs = {}

    for name, settings in sides(options.compile).items():
        shortened = {
            **settings,
            "steps": options.steps,
            "micro_batch": len(keys),
            "threads": options.threads,
        }
        runs[name] = (Sampler(build_model(), SamplerConfig(**shortened), device), settings["steps"])
        rates[name] = []

    for number in range(options.rounds + 1):
        for name, (sampler, steps) in runs.items():
            spent = (
                seconds(lambda s=sampler: s(images_BHWC, keys, CANDIDATES)) * steps / options.steps
            )
            if number:  # the first round warms up, and compiles
                rates[name].append(len(keys) * CANDIDATES / spent)

    return rates


def measure_overhead(images: str, options: argparse.Namespace, device: str) -> dict[str, float]:
    """Measure the percent of `make_shards`' time outside of U-Net passes; with so few steps it is overestimated."""
    settings = {
        **PAPER,
        **SHARED,
        **SOLVER,
        "steps": options.steps,
        "micro_batch": options.micro_batch,
    }
    anchors = ImageSource(AnchorsConfig(path=images, limit=2 * options.micro_batch, size=SIZE))
    sampler = Sampler(build_model(), SamplerConfig(**settings, threads=options.threads), device)
    passes: list[float] = []

    def timed(half: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result: list[Any] = []
            passes.append(seconds(lambda: result.append(half(*arguments))))
            return result[0]

        return call

    sampler.encode = timed(sampler.encode)
    sampler.decode = timed(sampler.decode)
    shards = ShardsConfig(candidates=CANDIDATES, records=options.micro_batch)
    plan = make_plan(anchors, sampler.model, sampler.config, shards)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        write_plan(root, plan)
        whole = seconds(lambda: make_shards(root, plan, anchors, sampler))

    return {"seconds": whole, "percent": 100 * (1 - sum(passes) / whole), "steps": options.steps}


def measure_matrix_share(rate: float, config: SamplerConfig, device: str) -> dict[str, float]:
    """Compare the arithmetic of the fast setting with that of a large matrix product of the same dtype."""
    model = build_model()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model.unet(torch.zeros(1, 3, SIZE, SIZE), 500)

    peak = matrix_rate(getattr(torch, config.dtype), device)
    used = rate * config.steps * counter.get_total_flops()
    return {
        "matrix_teraflops": peak / 1e12,
        "unet_teraflops": used / 1e12,
        "percent": 100 * used / peak,
    }


def measure_memory(images: str) -> dict[str, float]:
    """Measure the peak megabytes of a process that makes sets of 1 000 and of 8 000 anchors with a tiny U-Net."""
    found = {}
    for count in (1000, 8000):
        command = [sys.executable, __file__, "--images", images, "--peak-of", str(count)]
        found[str(count)] = float(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
    return found


def print_peak(images: str, count: int) -> None:
    # Random weights make flat images now and then; their size in memory is that of any others.
    network = DiffusionConfig(channels=(32, 32), attention=(False, False), blocks=1)
    model = build_model(network)
    anchors = ImageSource(AnchorsConfig(path=images, limit=count, size=SIZE))
    sampler = Sampler(model, SamplerConfig(steps=1, eta=0, micro_batch=64))
    shards = ShardsConfig(candidates=1, records=250)
    plan = make_plan(anchors, model, sampler.config, shards)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        write_plan(root, plan)
        make_shards(root, plan, anchors, sampler)

    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(usage.ru_maxrss / 1024)


def print_factors(rates: dict[str, list[float]], bf16: bool) -> None:
    print("images per second, calculated for all steps; ratio to the paper's setting")
    targets = {
        "shared anchor": TARGETS["shared"],
        "all": TARGETS["all, bf16" if bf16 else "all"],
    }
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["paper"], strict=True))
        target = targets.get(name)
        reached = f", target {target}: {verdict(ratio >= target)}" if target else ""
        print(f"  {name:14} {statistics.median(values):8.4f}/s   {ratio:5.2f} x{reached}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="digits", help="a source of images that clsp reads")
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    parser.add_argument("--steps", type=int, default=2, help="steps that each side runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.peak_of:
        print_peak(options.images, options.peak_of)
        return

    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "device": device,
    }
    images = load_images(
        None if options.images == "digits" else options.images, options.micro_batch
    )
    found["rates"] = measure_factors(images, options, device)
    print_factors(found["rates"], computes_bf16())
    found["overhead"] = measure_overhead(options.images, options, device)
    percent = found["overhead"]["percent"]
    print(
        f"not U-Net: {percent:.2f} % at {options.steps} steps, target 3 %: {verdict(percent <= TARGETS['overhead'])}"
    )
    fast = SamplerConfig(**sides(options.compile)["all"])
    found["matrix"] = measure_matrix_share(statistics.median(found["rates"]["all"]), fast, device)
    print(
        f"U-Net arithmetic (the anchors' passes not counted): {found['matrix']['percent']:.0f} % of a matrix product's"
    )
    found["memory"] = measure_memory(options.images)
    print(
        f"peak megabytes by anchors: {', '.join(f'{n}: {mb:.0f}' for n, mb in found['memory'].items())}"
    )

    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
