"""Read a folder of images, laid out in classes, in splits or flat, with or without a table of metadata."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from .config import AnchorsConfig
from .errors import SourceError
from .labels import find_classes
from .layout import Arrangement, arrange, split_meant
from .walk import FoundFile, FoundFiles, LeftOut

FILE_COLUMN = "file_name"


@dataclass(frozen=True)
class Table:
    """Holds what a metadata file says: the classes by the paths of the images."""

    path: str
    folder: str
    """Where it lies; it speaks of the images below."""
    labels: dict[str, int | None]
    class_names: tuple[str, ...] | None
    note: str
    """Why it tells no classes; empty where it does."""


class FolderSource:
    """Reads the images of one split of a folder, in the order of their paths.

    `arrangement` says what was taken for what, `left_out` what was not taken, `notes` what else a user should know.
    """

    licence = ""

    def __init__(self, root: Path, config: AnchorsConfig, found: FoundFiles):
        self.root = root
        self.name = root.resolve().name
        self.left_out = list(found.left_out)
        self.notes: list[str] = []

        # Tell splits from classes.
        all_names = [file.name for file in found.images]
        self.arrangement: Arrangement = arrange(all_names, config.layout, config.path)
        self.left_out += self.arrangement.left_out
        images = self.arrangement.split(_split_to_read(self.arrangement, config, root), config.path)
        self.names: list[str] = images.names
        self._labels: list[int] = images.labels
        self.class_names = self.arrangement.class_names

        # A table says more than folders do.
        tables = [_read_table(root, file.name, config) for file in found.tables]
        self._take_labels(tables, set(all_names))
        if config.label and not tables:
            raise SourceError(
                "label",
                f"{config.path} has no table of metadata (metadata.csv, .jsonl or .parquet) with a column "
                f"{config.label!r}; leave anchors.label empty to take folders for classes",
            )

        self.fingerprint = _fingerprint(root, found, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def content(self, index: int) -> bytes:
        """Return the encoded bytes of an image."""
        return self.path(index).read_bytes()

    def label(self, index: int) -> int | None:
        """Return the class number, or None without one."""
        label = self._labels[index]
        return None if label < 0 else label

    def describe(self, index: int) -> str:
        """Return the path of an image below the folder."""
        return self.names[index]

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.root / self.names[index]

    def _take_labels(self, tables: Sequence[Table], all_names: Collection[str]) -> None:
        """Take the classes that tables tell of this split's images; those that a table should list are left out."""
        self.notes += [table.note for table in tables if table.note]
        telling = []
        for table in tables:
            if not table.note and any(_is_below(name, table.folder) for name in self.names):
                telling.append(table)
        if not telling:
            return

        labels = _joined_labels(telling)
        self.left_out += _listed_but_absent(labels, all_names)

        # Keep the images that they list.
        names = self.names
        self.names = [name for name in names if name in labels]
        self.left_out += [
            LeftOut(name, "not listed in the metadata", True)
            for name in names
            if name not in labels
        ]
        self._labels = []
        for name in self.names:
            label = labels[name]
            self._labels.append(-1 if label is None else label)
        self.class_names = telling[0].class_names


def _joined_labels(tables: Sequence[Table]) -> dict[str, int | None]:
    """Return the classes of all tables, by the paths of the images."""
    first = tables[0]
    labels: dict[str, int | None] = {}
    for table in tables:
        if table.class_names != first.class_names:
            raise SourceError(
                "label",
                f"{table.path} and {first.path} name different classes; use one set of names in both",
            )
        labels |= table.labels

    return labels


def _listed_but_absent(labels: Iterable[str], all_names: Collection[str]) -> list[LeftOut]:
    absent = [name for name in labels if name not in all_names]
    return [LeftOut(name, "listed in the metadata but not there", True) for name in absent]


def _split_to_read(arrangement: Arrangement, config: AnchorsConfig, root: Path) -> str:
    """Return the recipe's split, or all images of a folder that is itself called like that split."""
    is_the_split_itself = split_meant(root.resolve().name) == split_meant(config.split)
    return "train" if arrangement.layout != "splits" and is_the_split_itself else config.split


def _is_below(name: str, folder: str) -> bool:
    return not folder or name.startswith(f"{folder}/")


def _read_table(root: Path, name: str, config: AnchorsConfig) -> Table:
    """Read a metadata file: paths of images, relative to its folder, and their classes."""
    where = f"{config.path}/{name}"
    try:
        columns = _columns(root / name)
    except (OSError, ValueError, pa.ArrowInvalid) as error:
        raise SourceError(
            "path", f"{where} cannot be read: {str(error).splitlines()[0]}"
        ) from error

    if FILE_COLUMN not in columns:
        raise SourceError(
            "path",
            f"{where} has the columns {', '.join(columns) or 'none'}; expected {FILE_COLUMN!r}, the path of an image "
            "beside it (or rename the file)",
        )

    folder, _, _ = name.rpartition("/")
    files = columns.pop(FILE_COLUMN)
    paths = [os.path.normpath(f"{folder or '.'}/{file}") for file in files]
    found = find_classes(columns, config.label, where)
    if found.classes is None:
        return Table(where, folder, {}, None, found.note)

    labels = dict(zip(paths, found.classes.labels, strict=True))
    return Table(where, folder, labels, found.classes.names, "")


def _columns(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a table by their names."""
    if path.suffix.lower() == ".parquet":
        return pq.read_table(path).to_pydict()

    if path.suffix.lower() == ".csv":
        # Empty cells are blanks, in columns of texts too.
        options = pa_csv.ConvertOptions(null_values=[""], strings_can_be_null=True)
        return pa_csv.read_csv(path, convert_options=options).to_pydict()

    columns: dict[str, list[Any]] = {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    for row in rows:
        for name in row:
            columns.setdefault(name, [])
    for name, values in columns.items():
        values += [row.get(name) for row in rows]

    return columns


def _fingerprint(root: Path, found: FoundFiles, names: list[str]) -> str:
    """Return a digest that changes with any file that is read.

    The time of a file's last change of state (ctime) is part of it: a file that is replaced by one of the same size,
    with its old time set again, has another.
    """
    by_name: dict[str, FoundFile] = {file.name: file for file in found.images}
    total = hashlib.blake2b(str(root.resolve()).encode(errors="surrogateescape"), digest_size=16)
    for file in found.tables:
        total.update(repr(tuple(file)).encode())
    for name in names:
        total.update(repr(tuple(by_name[name])).encode())

    return total.hexdigest()
