"""Features of labelled images: extracted once, in eval mode, without gradient.

Shape legend: N images, F features, B batch.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..shards import Anchors, AnchorsConfig, InputError
from ..train import embed, load_backbone
from .config import LinearEvalConfig

BATCH = 256


@dataclass(frozen=True)
class Features:
    """Features `(N, F)` float32 of a labelled set and, where asked for, of its mirror images; labels `(N,)` int64."""

    plain_NF: torch.Tensor
    flipped_NF: torch.Tensor | None
    labels_N: torch.Tensor


def labelled_sets(anchors: AnchorsConfig, config: LinearEvalConfig, size: int) -> tuple[Anchors, Anchors]:
    """The training images (the anchors' source) and the test images, at the backbone's image size."""
    test_path = config.test_path or _test_path(anchors.path, config.test_split)
    geometry = anchors.size or size
    train = Anchors(anchors.model_copy(update={"limit": config.train_limit, "size": geometry}))
    update = {"path": test_path, "split": config.test_split, "limit": config.test_limit, "size": geometry}
    return train, Anchors(anchors.model_copy(update=update))


def _test_path(path: str, split: str) -> str:
    """The anchors' own path, or beside a single file `train.parquet` the file `test.parquet`."""
    if not Path(path).is_file():
        return path
    sibling = Path(path).with_name(f"{split}{Path(path).suffix}")
    if not sibling.exists():
        raise InputError(f"{path} is one file, and there is no {sibling.name} beside it; set linear_eval.test_path")
    return str(sibling)


def check_labels(train: np.ndarray, test: np.ndarray) -> int:
    """The number of classes, from the training labels alone.

    Raises:
        InputError: the training labels are not 0 … n-1, or the test set has a class that training lacks.
    """
    classes = np.unique(train)
    if not np.array_equal(classes, np.arange(len(classes))):
        raise InputError(f"training labels are {classes[:5].tolist()}…, expected every class of 0 … {classes[-1]}")
    unknown = np.setdiff1d(test, classes)
    if len(unknown):
        raise InputError(f"test labels {unknown[:5].tolist()} do not occur in training; check linear_eval.test_path")
    return len(classes)


def extract(folder: Path, images: Anchors, flips: bool = False) -> Features:
    """Features of all images under the backbone saved in `folder`."""
    model, config = load_backbone(folder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    mean, std = (torch.tensor(config[name], device=device)[:, None, None] for name in ("mean", "std"))
    plain, flipped = [], []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            arrays = np.stack([anchor.image for anchor in images[start : start + BATCH]])
            batch = (torch.from_numpy(arrays).to(device).permute(0, 3, 1, 2).float() / 255 - mean) / std
            plain.append(embed(model, batch).cpu())
            if flips:
                flipped.append(embed(model, batch.flip(-1)).cpu())
    labels = torch.from_numpy(images.labels())
    return Features(torch.cat(plain), torch.cat(flipped) if flips else None, labels)


def backbone_size(folder: Path) -> int:
    """The image size that the backbone in `folder` was trained at, in pixels."""
    return int(json.loads((folder / "config.json").read_text())["pretrained_cfg"]["input_size"][-1])
