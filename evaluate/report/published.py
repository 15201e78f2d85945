"""Give the figures of the paper's authors (their release, top-1 in percent, one seed each) to compare with."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from ...core.run_name import RunName
from .results import RunResult

MOCO = "mocov2plus"
LINEAR = "linear.top1"
KNN = "knn.replica_best_on_test"
AUTHORS: Mapping[str, Any] = {
    "pretrain.epochs": 1000,
    "pretrain.batch_size": 1024,
    "pretrain.optimizer": "sgd",
    "pretrain.lr": 0.5,
    "pretrain.weight_decay": 1e-4,
    "pretrain.temperature": 0.2,
    "pretrain.projector_hidden": 4096,
    "pretrain.projector_out": 256,
    "pretrain.augment.crop_scale": 0.08,
    "pretrain.synthetic.keep": None,
    "pretrain.synthetic.minimum": None,
    "sampler.scheduler": "ddim",
    "sampler.steps": 100,
    "sampler.eta": 0.1,
    "sampler.weight": 0.1,
    "shards.candidates": 8,
    "linear_eval.epochs": 100,
    "linear_eval.lr": 1.0,
    "linear_eval.flip": True,
    "linear_eval.train_limit": 0,
    "linear_eval.test_limit": 0,
    "knn.temperature": 0.07,
    "anchors.limit": 0,
}
"""The settings behind the figures, where they are a recipe's."""
AUTHORS_MOCO: Mapping[str, Any] = {**AUTHORS, "pretrain.batch_size": 512, "pretrain.lr": 0.3}
"""The settings behind the figures of MoCo v2+."""
SOURCE = "Zeng et al. 2024, the authors' release"

# data set, backbone → run name → linear, kNN (the best k on the test images)
PUBLISHED: dict[tuple[str, str], dict[str, tuple[float, float | None]]] = {
    ("cifar10", "resnet18"): {
        "simclr": (91.45, 91.05),
        "simclr+augmentation": (91.88, None),
        "simclr+shards": (94.45, 94.10),
        "mocov2plus": (92.29, 91.74),
        "mocov2plus+augmentation": (93.16, None),
        "mocov2plus+shards": (94.62, 94.01),
    },
    ("cifar10", "resnet50"): {
        "simclr": (93.03, 92.17),
        "simclr+shards": (95.57, 95.14),
        "mocov2plus": (94.62, 94.33),
        "mocov2plus+shards": (96.04, 95.33),
    },
    ("cifar100", "resnet18"): {
        "simclr": (68.10, 66.24),
        "simclr+shards": (72.41, 70.88),
        "mocov2plus": (68.91, 68.11),
        "mocov2plus+shards": (72.33, 70.13),
    },
    ("cifar100", "resnet50"): {
        "simclr": (70.16, 69.21),
        "simclr+shards": (74.65, 72.81),
        "mocov2plus": (72.68, 72.25),
        "mocov2plus+shards": (76.43, 73.76),
    },
}


class PublishedRow(BaseModel):
    """Holds the published figures of a run name, and in what the runs' protocol is another than theirs.

    >>> PublishedRow(name="simclr", metrics={LINEAR: 91.45}, source=SOURCE, differences=[]).metrics
    {'linear.top1': 91.45}
    """

    model_config = ConfigDict(frozen=True)

    name: str
    metrics: dict[str, int | float]
    source: str
    differences: list[str]


def published_rows(results: Sequence[RunResult]) -> list[PublishedRow]:
    """Return the published row of every run name that has one.

    Args:
        results: one of every run; the first run of a name stands for it.
    """
    # The first run of every name
    by_name: dict[str, RunResult] = {}
    for result in reversed(results):
        by_name[result.name] = result

    # Its published figures
    rows = []
    for result in reversed(by_name.values()):
        figures = _figures(result)
        if figures is None:
            continue

        linear, knn = figures
        metrics: dict[str, int | float] = {LINEAR: linear}
        if knn is not None:
            metrics[KNN] = knn
        differences = _differences(result)
        rows.append(
            PublishedRow(name=result.name, metrics=metrics, source=SOURCE, differences=differences)
        )

    return rows


def _figures(result: RunResult) -> tuple[float, float | None] | None:
    """Return the published accuracies of a run's name, data set and network, None without any."""
    pretrain = result.section("pretrain")
    if pretrain.get("stem") != "cifar" or pretrain.get("backbone_kwargs"):
        return None

    key = (_data_set(result), pretrain.get("backbone", ""))
    return PUBLISHED.get(key, {}).get(result.name)


def _data_set(result: RunResult) -> str:
    """Return the data set that the path of the anchors names, empty for another one."""
    path = str(result.section("anchors").get("path", "")).lower()
    plain = path.replace("-", "").replace("_", "")
    for name in ("cifar100", "cifar10"):
        if name in plain:
            return name

    return ""


def _differences(result: RunResult) -> list[str]:
    """Say in what a run's protocol is another than that of the published figures."""
    found = []

    # Settings of the recipe
    is_moco = RunName.parse(result.name).method == MOCO
    settings = AUTHORS_MOCO if is_moco else AUTHORS
    for key, value in settings.items():
        own: Any = result.recipe
        for part in key.split("."):
            own = own.get(part) if isinstance(own, dict) else None
        if own != value:
            found.append(f"{key} {own} here, {value} there")

    # Precision and images
    if result.precision == "bf16":
        found.append("features in bf16 here, float32 there")

    path = result.section("anchors")["path"]
    if not str(path).startswith("uoft-cs/"):
        found.append(f"images from {path} here, the original files there")

    found.append("one seed and the last epoch there; kNN there with the best k on the test images")
    return found
