"""Figures of the paper's authors (their release, top-1 in percent, one seed each), to stand beside one's own."""

from typing import Any

LINEAR, KNN = "linear.top1", "knn.replica_best_on_test"
EPOCHS = 1000
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
        figures = PUBLISHED.get((_data_set(recipe), recipe.get("pretrain", {}).get("backbone", "")), {})
        if run["name"] in figures:
            linear, knn = figures[run["name"]]
            metrics = {LINEAR: linear} | ({} if knn is None else {KNN: knn})
            rows.append(
                {"name": run["name"], "metrics": metrics, "source": SOURCE, "differences": _differences(run, recipe)}
            )
    return rows[::-1]


def _data_set(recipe: dict[str, Any]) -> str:
    path = str(recipe.get("anchors", {}).get("path", "")).lower().replace("-", "").replace("_", "")
    return next((name for name in ("cifar100", "cifar10") if name in path), "")


def _differences(run: dict[str, Any], recipe: dict[str, Any]) -> list[str]:
    pretrain, found = recipe["pretrain"], []
    batch = 512 if run["name"].startswith("moco") else 1024
    for key, value in (("epochs", EPOCHS), ("batch_size", batch)):
        if pretrain.get(key) != value:
            found.append(f"{key} {pretrain.get(key)} here, {value} there")
    if run["protocol"] not in (None, "clsp"):
        found.append(f"linear protocol {run['protocol']} here, SGD without validation there")
    if not str(recipe["anchors"]["path"]).startswith("uoft-cs/"):
        found.append(f"images from {recipe['anchors']['path']} here, the original files there")
    if recipe["anchors"].get("limit") or recipe["linear_eval"].get("train_limit"):
        found.append("a part of the images here")
    found.append("one seed and the last epoch there; kNN there with the best k on the test images")
    return found
