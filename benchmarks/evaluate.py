"""Speed of the evaluation: feature extraction, the sweep of heads, the logistic regression of transfer, and the search
of candidates among all anchors.

    python benchmarks/evaluate.py --images /data/cifar10 --json evaluate.json

Figures with a target are ratios within one run, in which the sides take turns, except for the logistic regression,
whose target is a time.
"""

import argparse
import json
import platform
import statistics
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from clsp.core import computes_bf16
from clsp.evaluate import Encoder, Features, LinearEvalConfig, TransferConfig, extract, fit_path
from clsp.evaluate.features.encoder import CPU_BATCH, GPU_BATCH, compute_device
from clsp.evaluate.probes.sweep import train_heads
from clsp.evaluate.quality.nearest import BLOCK, search_anchors
from clsp.shards import AnchorsConfig, ImageSource
from made_sets import SIZE, EncodedImages, matrix_rate, png, seconds, verdict
from sklearn.linear_model import LogisticRegression
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)
WIDTH, CLASSES, TRAIN, TEST = 512, 10, 50_000, 10_000
ANCHORS, SEARCHED_WIDTH = 32_768, 2048
"""Anchors that a batch is compared with, and their features: 268 MB."""
IMAGENET, IMAGENET_CANDIDATES = 1_281_167, 8
TARGETS = {"extraction": 1.5, "sweep": 1.3, "logistic": 180.0}


def build_model() -> Any:
    """Build a ResNet-18 with CIFAR stem; random weights cost as much as trained ones."""
    torch.manual_seed(0)
    return timm.create_model("clsp_resnet18_cifar", num_classes=0).eval()


def usual_loop(model: Any, contents: list[bytes]) -> torch.Tensor:
    """Run torchvision's evaluation loop: workers that decode, float32, batches of 256."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    loader = DataLoader(EncodedImages(contents, transform), batch_size=256, num_workers=2)
    with torch.no_grad():
        return torch.cat([model(batch) for batch in loader])


def measure_extraction(images: ImageSource, rounds: int) -> dict[str, Any]:
    """Measure the images per second of both sides, and how far their features are apart."""
    # The encoded images
    contents: list[Any] = [images.source.content(index) for index in range(len(images))]
    if isinstance(contents[0], np.ndarray):
        contents = [png(anchor.image) for anchor in images]  # at the size that ours gets

    # The sides
    model = build_model()
    config = {"input_size": (3, SIZE, SIZE), "mean": MEAN, "std": STD}
    sides = {"ours, float32": Encoder(build_model(), config)}

    if computes_bf16():
        sides["ours, bf16"] = Encoder(build_model(), config, "bf16")

    # Their features
    expected = usual_loop(model, contents[:256])
    found = sides["ours, float32"](np.stack([anchor.image for anchor in images[:256]]))
    difference = float((expected - found).abs().max() / expected.abs().max())

    # Their rates, in turns
    rates: dict[str, list[float]] = {name: [] for name in ("usual loop", *sides)}
    for _ in range(rounds):
        spent = seconds(lambda: usual_loop(model, contents))
        rates["usual loop"].append(len(images) / spent)
        for name, encoder in sides.items():
            spent = seconds(lambda encoder=encoder: extract(encoder, images))
            rates[name].append(len(images) / spent)

    return {"rates": rates, "relative difference": difference}


def backbone_like(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw features that are correlated, not negative and not separable, and their labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    mixing = torch.randn(64, WIDTH, generator=generator)

    # A class's centre, correlated noise, and noise
    spread = 0.9 * torch.randn(count, 64, generator=generator) @ mixing
    noise = 3 * torch.randn(count, WIDTH, generator=generator)
    features = torch.relu(0.5 * centres[labels] + spread + noise)

    return features, labels


def measure_sweep(rounds: int, epochs: int = 2) -> dict[str, list[float]]:
    """Measure the seconds per epoch over 50 000 features: one head, and the 40 of the default sweep."""
    features, labels = backbone_like(TRAIN)
    train = Features((features - features.mean(0)) / features.std(0), None, labels)
    config = LinearEvalConfig(epochs=epochs, flip=False)
    grid = [(lr, decay) for lr in config.sweep_lr for decay in config.sweep_weight_decay]
    found: dict[str, list[float]] = {"one head": [], f"{len(grid)} heads": []}

    for _ in range(rounds):
        for settings, label in zip((grid[:1], grid), found, strict=True):
            found[label].append(
                seconds(lambda s=settings: train_heads(train, CLASSES, s, config)) / epochs
            )

    return found


def measure_logistic() -> dict[str, float]:
    """Measure the seconds for all 45 strengths, and of the middle one beside scikit-learn's."""
    features, labels = backbone_like(TRAIN)
    strengths = TransferConfig().strengths
    whole = seconds(lambda: list(fit_path(features, labels, CLASSES, strengths)))
    middle = strengths[len(strengths) // 2]
    alone = seconds(lambda: list(fit_path(features, labels, CLASSES, [middle])))
    reference = LogisticRegression(C=1 / middle, max_iter=1000)

    return {
        "45 strengths": whole,
        "one": alone,
        "scikit-learn, one": seconds(lambda: reference.fit(features.numpy(), labels.numpy())),
    }


def measure_search(rounds: int) -> dict[str, Any]:
    """Measure the seconds of a batch's search among anchors, and of the bare matrix product of the same size."""
    # Unit features, on the device to compute on
    device = compute_device()
    batch = CPU_BATCH if device.type == "cpu" else GPU_BATCH
    generator = torch.Generator().manual_seed(0)
    anchors_NF = torch.randn(ANCHORS, SEARCHED_WIDTH, generator=generator)
    anchors_NF = functional.normalize(anchors_NF, dim=1).to(device)
    unit_BF = torch.randn(batch, SEARCHED_WIDTH, generator=generator)
    unit_BF = functional.normalize(unit_BF, dim=1).to(device)
    own_B = torch.arange(batch // IMAGENET_CANDIDATES).repeat_interleave(IMAGENET_CANDIDATES)

    # In turns, each once before it counts
    sides = {
        "bare product": lambda: unit_BF @ anchors_NF.T,
        "search": lambda: search_anchors(unit_BF, anchors_NF, own_B),
    }
    found: dict[str, list[float]] = {name: [] for name in sides}
    for counts in [False] + [True] * max(5, rounds):
        for name, work in sides.items():
            spent = seconds(work)
            if counts:
                found[name].append(spent)

    square = matrix_rate(torch.float32, device.type)
    return {"device": device.type, "batch": batch, "seconds": found, "square product": square}


def print_search(found: dict[str, Any]) -> None:
    batch = found["batch"]
    product = found["seconds"]["bare product"]
    search = found["seconds"]["search"]
    ratio = statistics.median(a / b for a, b in zip(search, product, strict=True))
    each = statistics.median(search) / (batch * ANCHORS)
    rate = 2 * SEARCHED_WIDTH / each
    block = batch * BLOCK * 4 / 2**20
    print(f"\nsearch of {batch} candidates among {ANCHORS} anchors, {SEARCHED_WIDTH} features")
    print(f"  on the {found['device']}, at most {block:.0f} MiB of cosines at a time")
    print(f"  {1e9 * each:.1f} ns per candidate and anchor ({rate / 1e9:.0f} GFLOP/s)")
    print(f"  {ratio:.2f} x the time of the bare matrix product of this size")
    print(f"  {rate / found['square product']:.0%} of the rate of a large square product")

    # All of ImageNet's candidates against all of its anchors
    pairs = IMAGENET * IMAGENET_CANDIDATES * IMAGENET
    print(f"  at this rate ImageNet, K = {IMAGENET_CANDIDATES}: {pairs * each / 3600:.1f} hours")


def print_extraction(found: dict[str, Any]) -> float:
    rates = found["rates"]
    print("features, images per second")
    for name, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(values, rates["usual loop"], strict=True))
        reached = "" if name != "ours, float32" else f", target {TARGETS['extraction']}: "
        reached += verdict(ratio >= TARGETS["extraction"]) if reached else ""
        print(f"  {name:14} {statistics.median(values):7.1f}/s   {ratio:.2f} x{reached}")

    print(
        f"  float32 features differ from the loop's by {found['relative difference']:.1e} of the largest"
    )
    return statistics.median(rates["ours, float32"])


def print_sweep(found: dict[str, list[float]], rate: float | None) -> None:
    one, many = (statistics.median(values) for values in found.values())
    names = list(found)
    print(f"\nheads on 50 000 x {WIDTH} features, {CLASSES} classes, seconds per epoch")
    print(f"  {names[0]} {one:.2f}, {names[1]} {many:.2f}: {many / one:.2f} x")

    if rate:
        # An evaluation of 100 epochs; the sweep trains its heads on nine tenths and then the chosen one on all.
        extraction = (2 * TRAIN + TEST) / rate
        sweep = extraction + 100 * (0.9 * many + one)
        ratio = sweep / (extraction + 100 * one)

        target = TARGETS["sweep"]
        reached = verdict(ratio <= target)
        print(
            f"  with the features of {TRAIN} images, their mirror images and {TEST} more (at the rate above "
            f"{extraction:.0f} s): {ratio:.2f} x, target {target}: {reached}"
        )


def print_logistic(found: dict[str, float]) -> None:
    whole = found["45 strengths"]
    print(f"\nlogistic regression on 50 000 x {WIDTH}, {CLASSES} classes")
    print(
        f"  45 strengths {whole:.0f} s, target {TARGETS['logistic']:.0f}: {verdict(whole <= TARGETS['logistic'])}"
    )
    print(f"  one {found['one']:.1f} s, scikit-learn's {found['scikit-learn, one']:.1f} s")


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default="digits", help="a source of images that clsp reads")
    parser.add_argument("--count", type=int, default=1024, help="images to extract features of")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "images": options.images,
    }
    rate = None

    if "extraction" in options.only:
        found["extraction"] = measure_extraction(
            ImageSource(AnchorsConfig(path=options.images, limit=options.count, size=SIZE)),
            options.rounds,
        )
        rate = print_extraction(found["extraction"])

    if "sweep" in options.only:
        found["sweep"] = measure_sweep(options.rounds)
        print_sweep(found["sweep"], rate)

    if "logistic" in options.only:
        found["logistic"] = measure_logistic()
        print_logistic(found["logistic"])

    if "search" in options.only:
        found["search"] = measure_search(options.rounds)
        print_search(found["search"])

    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


PARTS = ["extraction", "sweep", "logistic", "search"]


if __name__ == "__main__":
    main()
