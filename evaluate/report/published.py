"""Figures of the paper's authors (their release, top-1 in percent, one seed each), to stand beside one's own."""

from typing import Any

LINEAR = "linear.top1"
KNN = "knn.replica_best_on_test"
AUTHORS: dict[str, Any] = {
    "pretrain.epochs": 1000,
    "pretrain.batch_size": 1024,
    "pretrain.optimizer": "sgd",
    "pretrain.lr": 0.5,
    "pretrain.weight_decay": 1e-4,
    "pretrain.temperature": 0.2,
    "pretrain.projector_hidden": 4096,
    "pretrain.projector_out": 256,
    "pretrain.augment.crop_scale": 0.08,
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
AUTHORS_MOCO: dict[str, Any] = {"pretrain.batch_size": 512, "pretrain.lr": 0.3}
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


def published_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The published row of every run name that has one: `{name, metrics, source, differences}`.

    `differences` says in what the runs' protocol is another than that of the figure.
    """
    rows = []
    for run in {run["name"]: run for run in reversed(runs)}.values():
        recipe = run.get("recipe") or {}
        pretrain = recipe.get("pretrain", {})
        same_network = pretrain.get("stem") == "cifar" and not pretrain.get("backbone_kwargs")
        backbone = pretrain.get("backbone", "") if same_network else ""
        figures = PUBLISHED.get((_data_set(recipe), backbone), {})

        if run["name"] in figures:
            linear, knn = figures[run["name"]]
            metrics = {LINEAR: linear} | ({} if knn is None else {KNN: knn})
            rows.append(
                {
                    "name": run["name"],
                    "metrics": metrics,
                    "source": SOURCE,
                    "differences": _differences(run, recipe),
                }
            )

    return rows[::-1]


def _data_set(recipe: dict[str, Any]) -> str:
    path = str(recipe.get("anchors", {}).get("path", "")).lower().replace("-", "").replace("_", "")
    return next((name for name in ("cifar100", "cifar10") if name in path), "")


def _differences(run: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    settings = AUTHORS | (AUTHORS_MOCO if run["name"].startswith("moco") else {})
    found = []
    for key, value in settings.items():
        own: Any = recipe
        for part in key.split("."):
            own = own.get(part) if isinstance(own, dict) else None
        if own != value:
            found.append(f"{key} {own} here, {value} there")

    if run["precision"] == "bf16":
        found.append("features in bf16 here, float32 there")

    if not str(recipe["anchors"]["path"]).startswith("uoft-cs/"):
        found.append(f"images from {recipe['anchors']['path']} here, the original files there")

    found.append("one seed and the last epoch there; kNN there with the best k on the test images")
    return found
