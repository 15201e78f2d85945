"""Open the source that `anchors.path` names, by what is there."""

import re
from pathlib import Path
from typing import Protocol

import numpy as np

from ...core import Report, local_path
from ...core.paths import FILE
from .config import AnchorsConfig
from .digits import DigitsSource
from .errors import SourceError
from .folder import FolderSource
from .huggingface import is_saved, open_data_files, open_file, open_hub, open_saved
from .left_out import check_left_out
from .walk import FoundFiles, LeftOut, find_files, reasons_of

FEW_PICTURES = 10
"""Fewer images beside data files are pictures of a description."""


ARRAYS = re.compile(r"(_batch(_\d+)?|-ubyte|\.(bin|npy|npz|mat|h5|pkl))$|(^|/)(train|test)$")
"""Names of files that hold many images as one array, such as those of CIFAR, MNIST and STL-10."""


class Source(Protocol):
    """Offers encoded bytes or an array per index, a label or None, and what there is to say about the images."""

    name: str
    licence: str
    fingerprint: str
    """Changes with the content; empty where there is none."""
    class_names: tuple[str, ...] | None
    """The names of the classes by their numbers, where they have names."""
    classes_from: str
    """What tells the classes, such as a column's name; empty without classes."""
    label_rule: str
    """How the labels were read, where versions before read others or none; else empty. Part of a plan."""
    left_out: list[LeftOut]
    """Files of a folder that are not taken."""
    notes: list[str]
    """Lines that a user should read before the work."""

    def __len__(self) -> int: ...

    def content(self, index: int) -> bytes | np.ndarray:
        """Return the encoded bytes of an image or, in sources without, its pixels."""
        ...

    def label(self, index: int) -> int | None:
        """Return the class number, or None without one."""
        ...

    def describe(self, index: int) -> str:
        """Return the file or the row that an image is in."""
        ...

    def path(self, index: int) -> Path | None:
        """Return the file of an image, None where it is part of a larger one."""
        ...


def open_source(config: AnchorsConfig, report: Report | None = None) -> Source:
    """Open a recipe's source: what is on this machine under its path, else a data set of the hub.

    Args:
        report: called with (files seen, 0) while a folder is walked.

    Raises:
        SourceError: nothing is there, or it cannot be read, or too much of it would be left out.
    """
    path = config.path
    local = Path(local_path(path))

    if path == "digits":
        return DigitsSource(config.split)

    if local.is_dir():
        source = _open_folder(local, config, report)
        check_left_out(source.left_out, len(source), path, config.on_error)
        return source

    if local.exists():
        return open_file(local, config)

    looks_local = (
        path.startswith((".", "/", "~", FILE)) or path.count("/") > 1 or local.suffix == ".parquet"
    )
    if looks_local:
        raise SourceError(
            "path", f"{path} does not exist; expected a hub id, a parquet file, a folder, or digits"
        )

    return open_hub(config)


def _open_folder(root: Path, config: AnchorsConfig, report: Report | None) -> Source:
    if is_saved(root):
        return open_saved(root, config)

    try:
        found = find_files(root, report)
    except OSError as error:
        raise SourceError("path", f"{config.path} cannot be listed: {error.strerror}") from error

    if _is_of_data_files(found, config):
        source = open_data_files(root, config, found.data_files)
        source.left_out += found.left_out
        for image in found.images:
            source.left_out.append(LeftOut(image.name, "a picture beside data files", False))
        return source

    if not found.images:
        raise SourceError(
            "path",
            f"{config.path} has no images; {_what_is_there(found)}; expected images in it or in folders below"
            f"{_what_to_do(found)}",
        )

    source = FolderSource(root, config, found)
    for file in found.data_files:
        source.left_out.append(LeftOut(file.name, "a data file beside images", False))
    return source


def _is_of_data_files(found: FoundFiles, config: AnchorsConfig) -> bool:
    """Say if the data files are the source, and not the images.

    Raises:
        SourceError: there is a lot of both.
    """
    if config.layout != "auto" or not found.data_files:
        return False
    if len(found.images) < FEW_PICTURES:
        return True

    # An archive beside what was unpacked from it is usual.
    tables = [file.name for file in found.data_files if not file.name.endswith(".tar")]
    if tables:
        raise SourceError(
            "path",
            f"{config.path} holds {len(found.images)} images and {len(tables)} data files, such as {tables[0]}; give "
            "the folder or file of one kind alone, or set anchors.layout for the images",
        )

    return False


def _what_is_there(found: FoundFiles) -> str:
    if not found.left_out:
        return "it is empty"

    return f"it holds {'; '.join(reasons_of(found.left_out)[:3])}"


def _what_to_do(found: FoundFiles) -> str:
    arrays = [file.name for file in found.left_out if ARRAYS.search(file.name)]
    if not arrays:
        return ""
    return (
        f", no arrays such as {arrays[0]}: save their images as files (docs/own-images.md), or give a data set of "
        "the hub"
    )
