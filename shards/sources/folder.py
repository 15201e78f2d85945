"""Read a folder of images, laid out in classes, in splits or flat, with or without a table of metadata."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from .config import AnchorsConfig
from .errors import SourceError
from .labels import find_classes, label_column, label_rule, unknown_column_note
from .layout import SPLIT_WORDS, Arrangement, arrange, split_meant
from .names import some, source_name
from .walk import FoundFile, FoundFiles, LeftOut, printable

FILE_COLUMN = "file_name"
COLUMN_OF_FOLDERS = "label"
"""What `datasets` calls the classes that folders tell, so that one may ask for them."""


LIST_SUFFIXES = frozenset((".txt", ".csv", ".tsv", ".json"))
LIST_WORDS = frozenset(
    ("trainval", *(word for word, split in SPLIT_WORDS.items() if split in ("test", "validation")))
)
"""Words in the names of files that list the images of a split, as public sets have them: `meta/test.txt`."""


@dataclass(frozen=True)
class Table:
    """Holds what a metadata file says of the images at or below its folder."""

    path: str
    folder: str
    names: list[str]
    """Paths of images below the root."""
    column: str | None
    """The column of the classes; None where there is none."""
    columns: list[str]
    values: list[Any]


@dataclass(frozen=True)
class ToldClasses:
    """Holds the classes that the tables of a folder tell, by the paths of the images below the root."""

    labels: dict[str, int | None]
    names: tuple[str, ...] | None
    folders: list[str]
    """The folders that the tables lie in; each speaks of what is below."""
    origin: str
    rule: str


class FolderSource:
    """Reads the images of one split of a folder, in the order of their paths.

    `arrangement` says what was taken for what.
    """

    licence = ""

    def __init__(self, root: Path, config: AnchorsConfig, found: FoundFiles):
        self.root = root
        self.name = source_name(config.path)
        self.left_out = list(found.left_out)
        self.notes: list[str] = []

        # A table says more than folders do.
        tables = [_read_table(root, file.name, config) for file in found.tables]
        if not tables and config.label not in ("", COLUMN_OF_FOLDERS):
            raise SourceError(
                "label",
                f"{config.path} has no column {config.label!r} of class numbers or names: it has no table "
                "(metadata.csv, .jsonl or .parquet), and its folders' classes are called "
                f"{COLUMN_OF_FOLDERS!r}; leave anchors.label empty for these",
            )
        told = self._read_classes(tables, config)

        # Tell splits from classes.
        all_names = [file.name for file in found.images]
        self.arrangement: Arrangement = arrange(all_names, config.layout, config.path)
        if told and self.arrangement.layout == "classes":
            self.arrangement = arrange(all_names, "flat", config.path)
        self.left_out += self.arrangement.left_out
        if self.arrangement.layout != "splits" and not tables:
            self.notes += _notes_of_lists(found)
        images = self.arrangement.split(_split_to_read(self.arrangement, config, root), config.path)

        # The classes that folders tell. Versions before took none beside a table, and numbered others by texts.
        self.names: list[str] = images.names
        self._labels: list[int | None] = [None if label < 0 else label for label in images.labels]
        self.class_names = self.arrangement.class_names
        self.classes_from = "folders" if self.class_names else ""
        self.label_rule = ""
        if self.class_names and tables:
            self.label_rule = "folders beside a table"
        elif self.class_names and list(self.class_names) != sorted(self.class_names):
            self.label_rule = "folders as numbers"

        # The order is that of the rows, as `datasets` has it, and what they do not list comes last.
        rows = [name for table in tables for name in table.names]
        places = {name: place for place, name in enumerate(rows)}
        order = sorted(
            range(len(self.names)), key=lambda index: places.get(self.names[index], len(places))
        )
        self.names = [self.names[index] for index in order]
        self._labels = [self._labels[index] for index in order]

        if told and any(_is_below(name, folder) for folder in told.folders for name in self.names):
            self._take_told(told, all_names)

        self.fingerprint = _fingerprint(root, found, self.names)

    def __len__(self) -> int:
        return len(self.names)

    def content(self, index: int) -> bytes:
        """Return the encoded bytes of an image."""
        return self.path(index).read_bytes()

    def label(self, index: int) -> int | None:
        """Return the class number, or None without one."""
        return self._labels[index]

    def describe(self, index: int) -> str:
        """Return the path of an image below the folder."""
        return printable(self.names[index])

    def path(self, index: int) -> Path:
        """Return the file of an image."""
        return self.root / self.names[index]

    def _read_classes(self, tables: Sequence[Table], config: AnchorsConfig) -> ToldClasses | None:
        """Return the classes that tables tell, numbered over all splits, so that a number means the same in each."""
        telling = [table for table in tables if table.column is not None]
        for table in tables:
            if table.column is None and table.columns:
                self.notes.append(unknown_column_note(table.columns, table.path))
        if not telling:
            return None

        values = [value for table in telling for value in table.values]
        column = str(telling[0].column)
        found = find_classes(values, column, config.label, telling[0].path)
        if found.classes is None:
            self.notes.append(found.note)
            return None

        names = [name for table in telling for name in table.names]
        labels: dict[str, int | None] = {}
        for name, label in zip(names, found.classes.labels, strict=True):
            if labels.setdefault(name, label) != label:
                raise SourceError(
                    "label",
                    f"{telling[0].path} lists {printable(name)} twice, with different classes in the column "
                    f"{column!r}; keep one row",
                )

        folders = [table.folder for table in telling]
        rule = label_rule(column, _holds_integers(values), config.label)
        origin = f"column {column} of {telling[0].path}"
        return ToldClasses(labels, found.classes.names, folders, origin, rule)

    def _take_told(self, told: ToldClasses, all_names: Sequence[str]) -> None:
        """Take the images that tables list, with their classes; others, and rows without an image, are left out."""
        self.left_out += _listed_but_absent(told.labels, set(all_names))
        unlisted = [name for name in self.names if name not in told.labels]
        self.left_out += [LeftOut(name, "not listed in the metadata", True) for name in unlisted]

        self.names = [name for name in self.names if name in told.labels]
        self._labels = [told.labels[name] for name in self.names]
        self.class_names = told.names
        self.classes_from = told.origin
        self.label_rule = told.rule


def _notes_of_lists(found: FoundFiles) -> list[str]:
    """Return a note where text files are called like lists of the images of splits, which are not read."""
    lists = []
    for file in found.left_out:
        path = PurePath(file.name)
        if path.suffix.lower() in LIST_SUFFIXES:
            words = re.findall("[a-z]+", path.stem.lower())
            lists += [file.name] if set(words) & LIST_WORDS else []

    # A caption beside an image called `test_1` is no list.
    if lists:
        images = {str(PurePath(image.name).with_suffix("")) for image in found.images}
        lists = [name for name in lists if str(PurePath(name).with_suffix("")) not in images]
    if not lists:
        return []

    return [
        f"{some(lists)}: called like lists of splits, which are not read, so that all images are split train; put the "
        "images of each split, or links to them, into a folder train, test, …"
    ]


def _holds_integers(values: Sequence[Any]) -> bool:
    return all(isinstance(value, int) and not isinstance(value, bool) for value in values)


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

    # The images
    folder, _, _ = name.rpartition("/")
    files = columns.pop(FILE_COLUMN)
    if not all(isinstance(file, str) for file in files):
        row = next(row for row, file in enumerate(files) if not isinstance(file, str))
        raise SourceError(
            "path",
            f"{where}, row {row + 1}, names no file in {FILE_COLUMN!r}; fill it in or remove the row",
        )
    paths = [os.path.normpath(f"{folder or '.'}/{file}") for file in files]

    # The column of the classes
    column = label_column(list(columns), config.label, where)
    values = columns[column] if column else []
    return Table(where, folder, paths, column, list(columns), values)


def _columns(path: Path) -> dict[str, list[Any]]:
    """Return the columns of a table by their names."""
    if path.suffix.lower() == ".parquet":
        return pq.read_table(path).to_pydict()

    if path.suffix.lower() == ".csv":
        # Empty cells are blanks, in columns of texts too.
        options = pa_csv.ConvertOptions(
            null_values=[""], strings_can_be_null=True, column_types={FILE_COLUMN: pa.string()}
        )
        return pa_csv.read_csv(path, convert_options=options).to_pydict()

    columns: dict[str, list[Any]] = {}
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number + 1} is no JSON object")
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
