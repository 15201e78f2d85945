"""Share of time of a latent model's parts in stage 1: autoencoder, U-Net, and what is neither; and its peak memory.

    python benchmarks/latent.py                       # tiny networks, in a minute on a CPU
    python benchmarks/latent.py --real --json latent.json

`--real` takes images of 256 pixels, an autoencoder of Stable Diffusion's size (latents of 32x32x4) and the U-Net of the
recipe's defaults. The weights are random, the images smooth random ones or `--images`. A denoising step costs the same
at any place of the schedule, so `--steps` of them are run and the time of all `--of-steps` is calculated.
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clsp.core import computes_bf16
from clsp.generate import (
    DiffusionConfig,
    DiffusionModel,
    LatentSpace,
    Sampler,
    SamplerConfig,
    build_unet,
    load_autoencoder,
    make_plan,
    make_shards,
    read_autoencoder,
    sampler,
)
from clsp.shards import AnchorsConfig, ImageSource, ShardsConfig, ShardWriter, write_plan
from diffusers import AutoencoderKL
from made_sets import seconds, verdict
from PIL import Image

NOISE_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 1e-4,
    "beta_end": 0.02,
}
TARGET = 3.0
"""Percent that nothing but the networks may take."""
NETWORKS = ("encoding", "U-Net", "decoding")


@dataclass(frozen=True)
class Sizes:
    """Holds how large images and networks are."""

    size: int
    autoencoder: tuple[int, ...]
    layers: int
    groups: int
    unet: DiffusionConfig


TINY = Sizes(
    size=32,
    autoencoder=(16, 32),
    layers=1,
    groups=8,
    unet=DiffusionConfig(channels=(32, 64), attention=(False, False), blocks=1),
)
REAL = Sizes(
    size=256, autoencoder=(128, 256, 512, 512), layers=2, groups=32, unet=DiffusionConfig()
)


def build_model(sizes: Sizes) -> DiffusionModel:
    """Return a latent model with random weights, whose latents are clipped to [-4, 4]."""
    torch.manual_seed(0)
    levels = len(sizes.autoencoder)
    settings: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": sizes.autoencoder,
        "layers_per_block": sizes.layers,
        "norm_num_groups": sizes.groups,
    }
    with tempfile.TemporaryDirectory() as folder:
        AutoencoderKL(**settings).save_pretrained(folder)
        autoencoder = load_autoencoder(read_autoencoder(folder))

    side = autoencoder.config.latent_size(sizes.size)
    unet = build_unet(sizes.unet, side, channels=4).eval().requires_grad_(False)
    space = LatentSpace(autoencoder, ((-4.0, 4.0),) * 4)
    return DiffusionModel(unet, NOISE_SCHEDULE, "benchmark", "0" * 64, latent=space)


def save_images(folder: Path, count: int, size: int) -> None:
    """Save smooth random images."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
        image.save(folder / f"{number:06d}.jpg", quality=95)


def open_images(path: str | None, folder: Path, count: int, size: int) -> ImageSource:
    """Open the images at `path`, or random ones that are saved into a folder."""
    if path is None:
        folder.mkdir()
        save_images(folder, count, size)
        path = str(folder)
    return ImageSource(AnchorsConfig(path=path, limit=count, size=size))


class Stopwatch:
    """Adds up the seconds that are spent in functions, by titles."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)

    def around(self, title: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, watched."""

        def call(*arguments: Any, **options: Any) -> Any:
            result: list[Any] = []
            self.spent[title] += seconds(lambda: result.append(function(*arguments, **options)))
            return result[0]

        return call


class WatchedAnchors:
    """Gives anchors, whose reading is watched."""

    def __init__(self, anchors: ImageSource, watch: Stopwatch):
        self._read = watch.around("reading", anchors.__getitem__)

    def __getitem__(self, index: int) -> Any:
        return self._read(index)


def measure_shares(options: argparse.Namespace, sizes: Sizes, device: str) -> dict[str, Any]:
    """Measure the seconds of every part of `make_shards`, the U-Net's as if all steps had been run."""
    config = SamplerConfig(
        steps=options.steps,
        micro_batch=options.micro_batch,
        decode_batch=options.decode_batch,
        threads=options.threads,
        dtype="bfloat16" if computes_bf16() else "float32",
    )
    model = build_model(sizes)
    watched = Sampler(model, config, device)
    watch = Stopwatch()

    # The first call loads and chooses
    blank = np.zeros((1, sizes.size, sizes.size, 3), np.uint8)
    watched(blank, ["blank"], candidates=1)

    # The networks
    watched.encode = watch.around("U-Net", watched.encode)
    watched.decode = watch.around("U-Net", watched.decode)
    assert model.latent is not None
    autoencoder: Any = model.latent.autoencoder
    autoencoder._encode = watch.around("encoding", autoencoder._encode)
    autoencoder._decode = watch.around("decoding", autoencoder._decode)

    # What is none
    sampler.keyed_normal = watch.around("noise", sampler.keyed_normal)
    sampler.clip_predicted_x0 = watch.around("scheduler", sampler.clip_predicted_x0)
    watched._step = watch.around("scheduler", watched._step)
    ShardWriter.add = watch.around("writing", ShardWriter.add)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        anchors = open_images(options.images, Path(folder) / "images", options.anchors, sizes.size)
        shards = ShardsConfig(candidates=options.candidates, records=options.anchors)
        plan = make_plan(anchors, model, config, shards)
        write_plan(root, plan)
        whole = seconds(lambda: make_shards(root, plan, WatchedAnchors(anchors, watch), watched))

    # As if all steps had been run
    watch.spent["other"] = whole - sum(watch.spent.values())
    more = options.of_steps / options.steps
    for title in ("U-Net", "noise", "scheduler"):
        watch.spent[title] *= more
    return {"dtype": config.dtype, "seconds": dict(watch.spent)}


def print_shares(found: dict[str, Any], is_real: bool) -> None:
    """Print the share of every part, and whether what is no network stays below the target."""
    spent = found["seconds"]
    whole = sum(spent.values())
    for title, part in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {title:9} {part:9.2f} s  {100 * part / whole:6.2f} %")

    largest = max((title for title in spent if title not in NETWORKS), key=lambda t: spent[t])
    percent = 100 * spent[largest] / whole
    reached = f", target {TARGET:g} %: {verdict(percent <= TARGET)}" if is_real else ""
    print(f"most of what is no network: {largest}, {percent:.2f} %{reached}")


def measure_memory(options: argparse.Namespace) -> dict[str, float]:
    """Measure the peak megabytes of processes that make sets of few and of many anchors with the tiny networks."""
    found = {}
    for count in (256, 2048):
        command = [sys.executable, __file__, "--peak-of", str(count)]
        command += ["--decode-batch", str(options.decode_batch)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[str(count)] = float(done.stdout)
    return found


def print_peak(options: argparse.Namespace) -> None:
    """Print the peak megabytes of this process, which makes a set."""
    model = build_model(TINY)
    config = SamplerConfig(steps=1, micro_batch=64, decode_batch=options.decode_batch)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        anchors = open_images(None, Path(folder) / "images", options.peak_of, TINY.size)
        plan = make_plan(anchors, model, config, ShardsConfig(candidates=2, records=256))
        write_plan(root, plan)
        make_shards(root, plan, anchors, Sampler(model, config))

    # Of this program alone: what `resource` tells is at least what the process had that started it
    status = Path("/proc/self/status").read_text(encoding="ascii")
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--real", action="store_true", help="images of 256 pixels, large networks")
    parser.add_argument("--images", help="a source of images that clsp reads")
    parser.add_argument("--anchors", type=int, default=16)
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--decode-batch", type=int, default=SamplerConfig().decode_batch)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of a CPU")
    parser.add_argument("--steps", type=int, default=2, help="steps that are run")
    parser.add_argument("--of-steps", type=int, default=SamplerConfig().steps, help="of a sampling")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.peak_of:
        print_peak(options)
        return

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sizes = REAL if options.real else TINY
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "size": sizes.size,
    }
    found["shares"] = measure_shares(options, sizes, device)
    print(
        f"{options.anchors} anchors x {options.candidates} candidates of {sizes.size} pixels, {options.of_steps} steps "
        f"({options.steps} run), {found['shares']['dtype']} on {found['device']}"
    )
    print_shares(found["shares"], options.real)

    found["memory"] = measure_memory(options)
    peaks = ", ".join(f"{count}: {peak:.0f}" for count, peak in found["memory"].items())
    print(f"peak megabytes by anchors, tiny networks: {peaks}")

    if options.json:
        options.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
