"""Pretrain one backbone of every family that timm has: which train, which are refused in a line, whether exports agree.

    python benchmarks/backbones.py
    python benchmarks/backbones.py --size 64 --families resnet vgg

Of a family (a module of `timm.models`) the smallest model is taken, with random weights. It is pretrained for a step on
digits of `--size` pixels; then its export is loaded again, and the features must be those of the last checkpoint's
weights. Neither refused nor right is a fault, and the exit code 1.
"""

import argparse
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import timm
import torch
from clsp.core import InputError
from clsp.evaluate import load_encoder
from clsp.shards import (
    AnchorsConfig,
    DiffusionPlan,
    ImageSource,
    Plan,
    Record,
    ShardsConfig,
    ShardSet,
    seal_if_complete,
    write_plan,
    write_shard,
)
from clsp.shards.format.plan import source_plan
from clsp.train import PretrainConfig, build_backbone, pretrain
from clsp.train.checkpoint import checkpoints

IMAGES = 4
MOST_PARAMETERS = 150e6
"""A larger one is left out: it would tell about the machine's memory."""
TOLERANCE = 1e-3
"""Of the features' largest difference, relative to their largest value: the encoder folds batch norms."""


def smallest(family: str) -> tuple[str, int]:
    """Return the name and the number of parameters of the smallest model of a family."""
    sizes = {}
    for name in timm.list_models(module=family):
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=0)
        sizes[name] = sum(parameter.numel() for parameter in model.parameters())

    name = min(sizes, key=lambda name: sizes[name])
    return name, sizes[name]


def make_set(root: Path, size: int) -> ShardSet:
    """Make a set of a few digits, each with its mirror image as its candidate."""
    source = ImageSource(AnchorsConfig(path="digits", limit=IMAGES, size=size))
    shards = ShardsConfig(candidates=1, records=IMAGES)
    model = DiffusionPlan(origin="none", digest="")
    plan = Plan(source=source_plan(source), diffusion=model, sampler={}, shards=shards)
    write_plan(root, plan)
    records = [Record(anchor, anchor.image[None, :, ::-1]) for anchor in source]
    write_shard(root, plan, 0, 0, records, dict)
    seal_if_complete(root, plan)
    return ShardSet(root)


def difference(config: PretrainConfig, out: Path, images_BHWC: np.ndarray) -> float:
    """Return by how much the features of a run's export differ from those of its last checkpoint."""
    weights = {}
    for name, value in safetensors.torch.load_file(checkpoints(out)[-1]).items():
        if name.startswith("model.backbone."):
            weights[name.removeprefix("model.backbone.")] = value

    model = build_backbone(config).eval()
    model.load_state_dict(weights)
    images_BCHW = torch.from_numpy(images_BHWC).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        expected: Any = model((images_BCHW - 0.5) / 0.5)

    found = load_encoder(out)(images_BHWC)
    return float((found - expected).abs().max() / expected.abs().max())


def attempt(
    shards: ShardSet, config: PretrainConfig, out: Path, images_BHWC: np.ndarray
) -> tuple[str, str]:
    """Return how a pretraining ends, and what there is to say about it."""
    try:
        pretrain(shards, config, out)
        relative = difference(config, out, images_BHWC)
    except InputError as error:
        return "FAULT" if out.exists() or "\n" in str(error) else "refused", str(error)
    except Exception as error:
        return "FAULT", f"{type(error).__name__}: {error}"

    return "trains" if relative < TOLERANCE else "FAULT", f"features differ by {relative:.1e}"


def main() -> int:
    """Go through the families and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--families", nargs="*", default=timm.list_modules())
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts = {"trains": 0, "trains with img_size": 0, "refused": 0, "left out": 0, "FAULT": 0}

    with tempfile.TemporaryDirectory() as folder:
        shards = make_set(Path(folder) / "set", options.size)
        images_BHWC = np.stack([shards.anchor(position) for position in range(IMAGES)])

        for family in options.families:
            name, parameters = smallest(family)
            config = PretrainConfig(
                backbone=name.removeprefix("clsp_").removesuffix("_cifar"),
                stem="cifar" if name.startswith("clsp_") else "default",
                batch_size=IMAGES,
                epochs=1,
                projector_hidden=16,
                projector_out=8,
                lr=0.01,
                workers=0,
                trackers=(),
            )
            verdict, detail = "left out", f"{parameters / 1e6:.0f} million parameters"
            if parameters <= MOST_PARAMETERS:
                verdict, detail = attempt(shards, config, Path(folder) / name, images_BHWC)
            if verdict == "refused":
                told = config.model_copy(update={"backbone_kwargs": {"img_size": options.size}})
                again, how = attempt(shards, told, Path(folder) / f"{name}-told", images_BHWC)
                if again == "trains":
                    verdict, detail = "trains with img_size", how
                elif again == "FAULT":
                    verdict, detail = "FAULT", f"with img_size: {how}"

            counts[verdict] += 1
            print(f"{verdict}: {family}: {name}: {' '.join(detail.split())}", flush=True)

    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 1 if counts["FAULT"] else 0


if __name__ == "__main__":
    sys.exit(main())
