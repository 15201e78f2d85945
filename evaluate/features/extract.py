"""Extract the features of labelled images: once, in eval mode, without gradient.

Shape legend: N images, F features, B batch.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from ...core import InputError, Report, local_path, permutation
from ...shards import Anchor, AnchorsConfig, ImageSource, screened
from ...shards.sources.errors import SourceError
from ...shards.sources.names import some
from ..config import LinearEvalConfig
from .encoder import Encoder

log = logging.getLogger(__name__)

Item = TypeVar("Item")
THREADS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True)
class Features:
    """Holds features `(N, F)` float32 of a labelled set and, if asked for, of its mirror images; labels `(N,)` int64.

    >>> features = Features(torch.eye(3), None, torch.tensor([0, 1, 1]))
    >>> features.at(features.labels_N == 1).plain_NF.tolist()
    [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """

    plain_NF: torch.Tensor
    flipped_NF: torch.Tensor | None
    labels_N: torch.Tensor

    def at(self, chosen_N: torch.Tensor) -> "Features":
        """Return those of some images, by a mask or by numbers."""
        flipped = None if self.flipped_NF is None else self.flipped_NF[chosen_N]
        return Features(self.plain_NF[chosen_N], flipped, self.labels_N[chosen_N])


def labelled_sets(
    anchors: AnchorsConfig, config: LinearEvalConfig, size: int, report: Report | None = None
) -> tuple[ImageSource, ImageSource]:
    """Open the training images (the anchors' source) and the test images, at the backbone's image size.

    Args:
        report: called with (files seen, 0) while a folder is walked.
    """
    # Training images
    test_path = config.test_path or _test_path(anchors.path, config.test_split)
    geometry = anchors.size or size
    train_split = config.train_split or anchors.split
    chosen = {"split": train_split, "limit": config.train_limit, "size": geometry}
    keys = {"split": "linear_eval.train_split" if config.train_split else "anchors.split"}
    train = screened(open_with_keys(anchors.model_copy(update=chosen), keys, report))
    if (test_path, config.test_split) == (anchors.path, train_split):
        raise InputError(
            f"{test_path} split {train_split} is the training split too; set linear_eval.test_split"
        )

    # Test images. One that does not decode is an error: accuracy on the rest would be another figure.
    update = {
        "on_error": "fail",
        "path": test_path,
        "split": config.test_split,
        "limit": config.test_limit,
        "size": geometry,
        "bits": _bits_in_use(train),
    }
    keys = {"split": "linear_eval.test_split"}
    if config.test_path:
        keys["path"] = "linear_eval.test_path"
    test = open_with_keys(anchors.model_copy(update=update), keys, report)
    number_alike(train, test)
    return train, test


def number_alike(train: ImageSource, other: ImageSource) -> None:
    """Number the classes of another split as those of the training images, by their names.

    Where one side has numbers alone, names that are numbers too are compared with these. Other names cannot be; their
    order is taken for that of the numbers, and a line says so.

    Raises:
        InputError: the other split has a class that the training images lack.
    """
    names = train.names_in_use
    others = other.names_in_use
    if names is None and others is None:
        return

    largest = max(train.labels().max(), other.labels().max())  # refused where there are none
    if names is None:
        names = tuple(str(number) for number in range(largest + 1))
        if not all(name.isdecimal() for name in others or ()):
            _say_taken_for(train, other, others or ())
            return

    elif others is None and not all(name.isdecimal() for name in names):
        _say_taken_for(other, train, names)
        return

    # A class that only other splits have is none of the training images'.
    if train.class_names and train.class_names != names:
        train.use_classes(names)
    if other.class_names != names:
        other.use_classes(names)


def _say_taken_for(numbered: ImageSource, named: ImageSource, names: Sequence[str]) -> None:
    """Say which numbers are taken for which names, where only one side has names."""
    taken = some(f"{number} for {name}" for number, name in enumerate(names))
    log.warning(
        "clsp: note: %s split %s has class numbers without names, %s split %s has names: takes %s; "
        "if that is wrong, give both numbers, or both names",
        numbered.config.path,
        numbered.config.split,
        named.config.path,
        named.config.split,
        taken,
    )


def _bits_in_use(images: ImageSource) -> int:
    """Return the bits that 16-bit images use, so that others are scaled alike; 0 for images of 8 bits."""
    _ = images[0]  # measures them
    return images.pixels.bits


def open_with_keys(
    config: AnchorsConfig, keys: Mapping[str, str], report: Report | None = None
) -> ImageSource:
    """Open images that other keys of the recipe than `[anchors]` name, so that an error says those.

    Args:
        keys: for `path` and `split`, where they are not the anchors'.
        report: called with (files seen, 0) while a folder is walked.

    Raises:
        InputError: they cannot be read.
    """
    try:
        return ImageSource(config, report)
    except SourceError as error:
        key = keys.get(error.key, f"anchors.{error.key}")
        raise InputError(f"{key}: {error.reason}") from error


def _test_path(path: str, split: str) -> str:
    """Return the anchors' own path, or beside a single file `train.parquet` the file `test.parquet`."""
    file = Path(local_path(path))
    if not file.is_file():
        return path
    sibling = file.with_name(f"{split}{file.suffix}")
    if not sibling.exists():
        raise InputError(
            f"{path} is one file, and there is no {sibling.name} beside it; set linear_eval.test_path"
        )
    return str(sibling)


def check_labels(
    train: np.ndarray,
    test: np.ndarray,
    complete: bool = True,
    names: Sequence[str] | None = None,
) -> int:
    """Return the number of classes, from the training labels alone.

    Args:
        complete: every class has to occur in the test set too, since accuracy per class is a mean over all of them.
        names: what the classes are called, for messages.

    Raises:
        InputError: the training labels are not 0 … n-1, or one of the two sets has a class that the other lacks.
    """
    # Training labels
    classes = np.unique(train)
    if not np.array_equal(classes, np.arange(len(classes))):
        raise InputError(
            f"training labels are {called(classes)}, expected every class of 0 … {classes[-1]}"
        )
    if len(classes) < 2:
        raise InputError("all training images are of one class; expected at least two classes")

    # Test labels
    unknown = np.setdiff1d(test, classes)
    missing = np.setdiff1d(classes, test)
    if len(unknown):
        raise InputError(
            f"test labels {called(unknown, names)} do not occur in training; expected images of the same classes"
        )
    if complete and len(missing):
        raise InputError(
            f"test images lack the classes {called(missing, names)}, expected all {len(classes)}"
        )

    return len(classes)


def called(labels: np.ndarray, names: Sequence[str] | None = None) -> str:
    """Return what some classes are called, for a message: their names or, in brackets, their numbers."""
    numbers: list[int] = labels.tolist()
    if names:
        return some([names[number] for number in numbers])
    return f"[{some(map(str, numbers))}]"


def hold_out(labels_N: np.ndarray, share: float, *stream: object) -> np.ndarray:
    """Choose the images that are held out for choices: `(N,)` bool, a share of every class and at least one image.

    A pure function of the labels and `stream`, so that every run holds out the same ones.

    Raises:
        InputError: a class has a single image.
    """
    classes, counts = np.unique(labels_N, return_counts=True)
    if counts.min() < 2:
        alone = classes[counts.argmin()]
        raise InputError(
            f"class {alone} has one training image, holding out for validation needs two per class"
        )

    return draw_per_class(labels_N, lambda count: max(1, round(share * count)), *stream)


def draw_per_class(
    labels_N: np.ndarray, count: Callable[[int], int], *stream: object
) -> np.ndarray:
    """Draw so many images of every class as `count` says of its size: `(N,)` bool, the same ones for a stream."""
    chosen = np.zeros(len(labels_N), bool)
    for label in np.unique(labels_N):
        members = np.flatnonzero(labels_N == label)
        drawn = permutation(len(members), *stream, int(label))[: count(len(members))]
        chosen[members[drawn]] = True
    return chosen


def extract(
    encoder: Encoder, images: ImageSource, flips: bool = False, report: Report | None = None
) -> Features:
    """Extract the features of all images, once; the next batch is decoded while the encoder works.

    Args:
        flips: also of their mirror images.
        report: called with (done, total).
    """
    plain = []
    flipped = []
    for start, arrays in ahead(decoded(images, encoder.batch)):
        plain.append(encoder(arrays))
        if flips:
            flipped.append(encoder(arrays, flips=True))
        if report:
            report(start + len(arrays), len(images))

    labels = torch.from_numpy(images.labels())
    return Features(torch.cat(plain), torch.cat(flipped) if flips else None, labels)


def embed_images(
    encoder: Encoder, images: ImageSource, report: Report | None = None
) -> torch.Tensor:
    """Extract the features `(N, F)` float32 of all images, labelled or not.

    Args:
        report: called with (done, total).
    """
    features = []
    for start, arrays in ahead(decoded(images, encoder.batch)):
        features.append(encoder(arrays))
        if report:
            report(start + len(arrays), len(images))

    return torch.cat(features)


def decoded(images: ImageSource, batch: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (place, images `(B, H, W, 3)`) batch by batch."""
    start = 0
    for anchors in read_anchors(images, batch):
        yield start, np.stack([anchor.image for anchor in anchors])
        start += len(anchors)


def read_anchors(images: ImageSource, batch: int) -> Iterator[list[Anchor]]:
    """Yield the images of a source batch by batch; in threads, for Pillow decodes outside Python's lock."""
    with ThreadPoolExecutor(THREADS) as threads:
        for start in range(0, len(images), batch):
            places = range(start, min(start + batch, len(images)))
            yield list(threads.map(images.__getitem__, places))


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield the items, each made by another thread while the one before it is used."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, iterator, None)
        while True:
            item = coming.result()
            if item is None:
                return
            coming = thread.submit(next, iterator, None)
            yield item
