"""Speed of stage 2: SimCLR with the synthetic term, ResNet-18 with CIFAR stem, beside the usual way and `lightly`.

    python benchmarks/train.py --images /data/cifar10 --json train.json

`pip install lightly` has it measured too. The sides take turns; figures are medians over the rounds of one run. «The
usual way» is the same model and loss with torchvision's PIL transforms in DataLoader workers, eager. `lightly` trains
SimCLR with two views, so it stands beside ours with two. Ours computes in bf16 where the processor does, the others in
float32 and in bf16. `--compile` has ours measured with torch.compile too. Where a step's time goes is told by
benchmarks/step_profile.py.
"""

import argparse
import importlib.util
import json
import platform
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from clsp.core import computes_bf16, make_accelerator
from clsp.shards import ShardSet
from clsp.train import PretrainConfig, Views, batch_order, build_method
from clsp.train.build import build_optimizer, pair_loader, prepared_method
from clsp.train.inputs import InputMaker
from clsp.train.pretrain import Trainer
from made_sets import (
    SIZE,
    EncodedImages,
    load_images,
    make_plan,
    make_set,
    matrix_rate,
    png,
    seconds,
    verdict,
)
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

TARGETS = {"usual float32": 2.5, "usual bf16": 1.3, "waiting": 2.0, "augmentation": 3.5}
"""How often ours is as fast as the usual way in a precision; percent of waiting; how often as fast as PIL."""
JITTER = (0.4, 0.4, 0.4, 0.1)
PREFETCHED = 4
"""Batches that loaders have ready when their side's turn begins; they are not timed."""


def config_of(options: argparse.Namespace, source: str, precision: str) -> PretrainConfig:
    return PretrainConfig(
        epochs=1000,
        batch_size=options.batch,
        workers=1,
        precision="bf16" if precision == "bf16" else "no",
        synthetic={"source": source},
    )


def usual_transform() -> Any:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, scale=(0.08, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(*JITTER)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.5,) * 3, (0.5,) * 3),
        ]
    )


class Ours:
    """Does steps as `clsp pretrain` does them, on a shard set."""

    def __init__(self, root: Path, config: PretrainConfig):
        AcceleratorState._reset_state(
            reset_partial_state=True
        )  # the precision belongs to the process
        accelerator = make_accelerator(config.precision)
        shards = ShardSet(root)
        order = batch_order(shards, config)
        method = prepared_method(config, accelerator.device)
        model, optimizer = accelerator.prepare(method, build_optimizer(method, config))
        views = Views(config, SIZE, accelerator.device)
        inputs = InputMaker(config, views, accelerator.device, method.views, shards.candidates)
        self.trainer = Trainer(
            accelerator, method, model, optimizer, config, inputs, order.batches_per_epoch
        )
        self.loader = pair_loader(shards, config, order)
        self.step = 0
        self.batches = iter(self.loader)
        model.train()

    def __call__(self) -> None:
        self.trainer.step(self.step, next(self.batches))
        self.step += 1


class Usual:
    """Does steps of the same model and loss, views made by PIL in workers."""

    def __init__(self, images: np.ndarray, config: PretrainConfig, precision: str):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.method = build_method(config).to(self.device).train()
        self.precision = precision
        self.optimizer = torch.optim.SGD(self.method.parameters(), lr=0.1, momentum=0.9)
        views = 2 if config.third_view == "none" else 3
        transform = usual_transform()
        contents = [png(image) for image in images]
        self.data = EncodedImages(contents, lambda image: [transform(image) for _ in range(views)])
        self.batch = config.batch_size
        self.batches = self._forever()

    def _forever(self) -> Iterator[Any]:
        options: Any = {
            "shuffle": True,
            "drop_last": True,
            "num_workers": 2,
            "persistent_workers": True,
        }
        loader = DataLoader(self.data, self.batch, **options)
        while True:
            yield from loader

    def __call__(self) -> None:
        views = [view.to(self.device) for view in next(self.batches)]
        third = views[2] if len(views) == 3 else None
        labels = torch.zeros(self.batch)

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            losses = self.method(views[:2], third, None, labels)

        self.optimizer.zero_grad()
        loss: Any = sum(losses.values())
        loss.backward()
        self.optimizer.step()


class Lightly(Usual):
    """Does steps of `lightly`'s transform, head and loss on the same backbone, as its SimCLR example has them."""

    def __init__(self, images: np.ndarray, config: PretrainConfig, precision: str):
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        super().__init__(images, config, precision)
        self.backbone = self.method.backbone
        self.head = SimCLRProjectionHead(512, config.projector_hidden, config.projector_out).to(
            self.device
        )
        self.criterion = NTXentLoss(temperature=config.temperature)
        self.optimizer = torch.optim.SGD(
            [*self.backbone.parameters(), *self.head.parameters()], lr=0.1, momentum=0.9
        )
        self.data.transform = SimCLRTransform(input_size=SIZE, gaussian_blur=0.0)

    def __call__(self) -> None:
        views = [view.to(self.device) for view in next(self.batches)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            z1, z2 = (self.head(self.backbone(view)) for view in views)
            loss = self.criterion(z1, z2)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


def measure_steps(images: np.ndarray, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure the images per second of every side: ours in the best precision of the machine, others in all it has."""
    # Ours
    precisions = ["float32", "bf16"] if computes_bf16() else ["float32"]
    best = precisions[-1]
    three, two = (config_of(options, source, best) for source in ("shards", "none"))
    sides: dict[str, Any] = {"ours": Ours(root, three), "ours, 2 views": Ours(root, two)}
    if options.compile:
        sides["ours, compiled"] = Ours(root, three.model_copy(update={"compile": True}))

    # The others
    for precision in precisions:
        sides[f"usual {precision}"] = Usual(images, three, precision)
        if importlib.util.find_spec("lightly"):
            sides[f"lightly {precision}, 2 views"] = Lightly(images, two, precision)

    # Turns
    rates: dict[str, list[float]] = {name: [] for name in sides}
    waited = 0.0
    for number in range(options.rounds + 1):
        for name, side in sides.items():
            for _ in range(PREFETCHED):  # made while the other sides had their turns
                side()
            before = side.loader.waited if name == "ours" else 0.0
            spent = seconds(lambda s=side: [s() for _ in range(options.steps)])
            if number:  # the first round warms up
                rates[name].append(options.batch * options.steps / spent)
                waited += side.loader.waited - before if name == "ours" else 0.0

    spent = sum(options.batch * options.steps / rate for rate in rates["ours"])
    return {
        "precision": best,
        "rates": rates,
        "waiting": 100 * waited / spent,
        "matrix": measure_matrix_share(three, rates["ours"]),
    }


def measure_matrix_share(config: PretrainConfig, rates: list[float]) -> dict[str, float]:
    """Return the images per second if the backbone ran like a large matrix product, and ours as a share of that."""
    # The arithmetic of an image
    images = 2
    method = build_method(config)
    views = [torch.zeros(images, 3, SIZE, SIZE) for _ in range(3)]
    labels = torch.zeros(images)
    with FlopCounterMode(display=False) as counter:
        losses = method(views[:2], views[2], None, labels)
        loss: Any = sum(losses.values())
        loss.backward()
    per_image = counter.get_total_flops() / images

    # The rate of a matrix product
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    limit = matrix_rate(dtype, device) / per_image
    return {"limit": limit, "percent": 100 * statistics.median(rates) / limit}


def measure_augmentation(images: np.ndarray, rounds: int) -> dict[str, list[float]]:
    """Measure the views per second on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    views = Views(PretrainConfig(), SIZE, torch.device("cpu"))
    transform = usual_transform()
    batch = torch.from_numpy(images).permute(0, 3, 1, 2)
    pictures = [Image.fromarray(image) for image in images]
    found: dict[str, list[float]] = {"ours": [], "PIL": []}

    for number in range(rounds + 1):
        ours = seconds(lambda: views(batch, 1, 0, 0))
        pil = seconds(lambda: [transform(p) for p in pictures])
        if number:
            found["ours"].append(len(images) / ours)
            found["PIL"].append(len(images) / pil)

    torch.set_num_threads(threads)
    return found


def ratio(rates: dict[str, list[float]], first: str, second: str) -> float:
    return statistics.median(a / b for a, b in zip(rates[first], rates[second], strict=True))


def print_steps(found: dict[str, Any]) -> None:
    """Print the rates, and ours as a multiple of the others'."""
    rates = found["rates"]
    print(f"training, images per second, ours in {found['precision']}")
    for side, values in rates.items():
        print(f"  {side:26} {statistics.median(values):8.2f}/s")

    mine = [side for side in ("ours", "ours, compiled") if side in rates]
    for other in ("usual float32", "usual bf16"):
        for side in mine if other in rates else []:
            reached = ratio(rates, side, other)
            target = TARGETS[other] if found["precision"] == "bf16" else None
            wanted = f", target {target}: {verdict(reached >= target)}" if target else ""
            print(f"  {side} to {other} {reached:.2f} x{wanted}")

    for other in ("lightly float32, 2 views", "lightly bf16, 2 views"):
        if other in rates:
            print(f"  ours, 2 views to {other} {ratio(rates, 'ours, 2 views', other):.2f} x")

    limit, percent = found["matrix"].values()
    print(f"  at the rate of a matrix product {limit:.2f}/s: ours is {percent:.0f} %")
    print(
        f"  waiting for data {found['waiting']:.2f} %, target 2: {verdict(found['waiting'] <= TARGETS['waiting'])}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", help="a source of images that clsp reads; default: smooth random ones"
    )
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8, help="per round and side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args()
    images = load_images(options.images, 2048)
    found: dict[str, Any] = {"machine": platform.platform(), "torch": torch.__version__}
    found["augmentation"] = measure_augmentation(images, options.rounds)
    faster = ratio(found["augmentation"], "ours", "PIL")
    ours, pil = (statistics.median(values) for values in found["augmentation"].values())
    print(f"augmentation on one thread, views per second: ours {ours:.0f}, PIL {pil:.0f}")
    print(
        f"  {faster:.2f} x, target {TARGETS['augmentation']}: {verdict(faster >= TARGETS['augmentation'])}"
    )

    with tempfile.TemporaryDirectory() as folder:
        root = make_set(Path(folder) / "set", make_plan(len(images), 256), images)
        found["training"] = measure_steps(images, root, options)
        print_steps(found["training"])

    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
