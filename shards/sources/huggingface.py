"""Read image sources through Hugging Face `datasets`: the hub, parquet, arrow, WebDataset tars, `save_to_disk`."""

import glob
import hashlib
import logging
import os
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, cast

from ...core import InputError
from .config import AnchorsConfig
from .decoding import is_image
from .errors import SourceError
from .labels import (
    FIRST_NAMES,
    find_classes,
    label_column,
    label_rule,
    unknown_column_note,
)
from .layout import SPLIT_WORDS, folder_meant, split_meant
from .names import some, source_name
from .walk import FoundFile, LeftOut

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
"""The readers of `datasets` for files with these endings."""

IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "jpeg", "png")
"""Columns, in any case, that are taken for the images where several hold some."""

SAMPLED = 16
"""Rows that are looked at for images."""

SHARDED = re.compile(r"(.+?)-\d{5}-of-\d{5}.*")
"""The name of a file on the hub, from the name of its split on."""


class HFSource:
    """Reads one split of a data set that `datasets` has opened.

    The image column is the first one that holds images by the data set's own word, else the one whose plain bytes are
    images, of several the one with a usual name such as `image`. The classes are those of the recipe's `anchors.label`
    or, where that is empty, of a column of class numbers with a usual name, else of the first column of class labels,
    else of any column with a usual name.
    """

    def __init__(self, dataset: Any, config: AnchorsConfig, files: Sequence[FoundFile] = ()):
        path = config.path
        self.name = source_name(path)
        self.licence = dataset.info.license or ""
        self.fingerprint: str = _fingerprint(dataset, files)
        self.left_out: list[LeftOut] = []

        self.notes: list[str] = []
        self.class_names: tuple[str, ...] | None = None
        self.classes_from = ""
        self.label_rule = ""
        self._labels: list[int | None] | None = None

        # Choose the columns, and keep images encoded.
        self._image_column = _image_column(dataset, path)
        self._take_labels(dataset, config)
        images = dataset.select_columns([self._image_column])
        if _kind_of_bytes(images.features[self._image_column]) == "binary_view":
            images = images.cast_column(self._image_column, _plain_binary())
        self._images = images.cast_column(self._image_column, _undecoded())

    def __len__(self) -> int:
        return len(self._images)

    def content(self, index: int) -> bytes:
        """Return the encoded bytes of an image, as the source holds them; none where it has no image."""
        cell = self._cell(index)
        if not cell or not (cell["bytes"] or cell["path"]):
            return b""
        return cell["bytes"] or Path(cell["path"]).read_bytes()

    def label(self, index: int) -> int | None:
        """Return the class number, or None without one."""
        return None if self._labels is None else self._labels[index]

    def path(self, index: int) -> None:
        """Return None: an image is no file of its own."""

    def describe(self, index: int) -> str:
        """Return the row and, where the data set tells it, the file name of an image."""
        cell = self._cell(index)
        name = Path(cell["path"]).name if cell and cell["path"] else ""
        return f"row {index}" + (f", {name}" if name else "")

    def _take_labels(self, dataset: Any, config: AnchorsConfig) -> None:
        """Take the classes of a column, or note why there are none."""
        features = dataset.features
        others = [name for name in features if name != self._image_column]
        column = _label_column(features, others, config)
        if column is None:
            told = [name for name in others if not name.startswith("__")]  # of a tar: its keys
            if told:
                self.notes.append(unknown_column_note(told, config.path))
            return

        found = find_classes(dataset[column][:], column, config.label, config.path)
        if found.classes is None:
            self.notes.append(found.note)
            return

        self._labels = found.classes.labels
        self.class_names = found.classes.names
        self.classes_from = f"column {column}"
        if _has_class_names(features[column]):
            self.class_names = tuple(features[column].names)
        else:
            holds_integers = _holds_classes(features[column])
            self.label_rule = label_rule(column, holds_integers, config.label)

    def _cell(self, index: int) -> dict[str, Any] | None:
        return cast("dict[str, Any] | None", self._images[index][self._image_column])


def open_hub(config: AnchorsConfig) -> HFSource:
    """Open a data set of the hub, or of its local cache.

    Raises:
        SourceError: there is none of that id, or no such split.
    """
    import datasets
    from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

    path = config.path
    if path in _PACKAGED_DATASETS_MODULES:
        raise SourceError(
            "path",
            f"{path} is a reader of `datasets`, no data set; for a folder of that name write ./{path}",
        )

    return HFSource(_load(config, lambda: datasets.load_dataset(path, split=config.split)), config)


def open_file(path: Path, config: AnchorsConfig) -> HFSource:
    """Open a single parquet, arrow or tar file; it is the split that is asked for.

    Raises:
        SourceError: the file is of another kind, or damaged.
    """
    import datasets

    builder = BUILDERS.get(path.suffix.lower())
    if builder is None:
        raise SourceError(
            "path",
            f"{config.path} is a file ({path.suffix or 'no suffix'}); expected a folder, or a file that ends in "
            f"{', '.join(BUILDERS)}",
        )

    # Brackets in a path are no pattern.
    files = {config.split: glob.escape(str(path))}
    dataset = _load(
        config, lambda: datasets.load_dataset(builder, data_files=files, split=config.split), [path]
    )
    return HFSource(dataset, config, [FoundFile.of(str(path), path.stat())])


def open_data_files(root: Path, config: AnchorsConfig, files: Sequence[FoundFile]) -> HFSource:
    """Open a folder of parquet, arrow or tar files, as a repository of the hub holds them.

    The names of files and of their folders say the splits, `train` where none does; a card `README.md` that lists the
    files of its configuration is gone by.

    Raises:
        SourceError: no such split, files of several kinds, or a damaged one.
    """
    import datasets

    if _has_card_with_files(root):
        _check_no_pattern(root, config)
        dataset = _load(
            config,
            lambda: datasets.load_dataset(str(root), split=config.split),
            _paths(root, files),
        )
        return HFSource(dataset, config, files)

    # One kind of files, and those of the split
    kinds = {BUILDERS[PurePath(file.name).suffix.lower()]: file.name for file in files}
    if len(kinds) > 1:
        raise SourceError(
            "path",
            f"{config.path} holds data files of several kinds, such as {' and '.join(kinds.values())}; give a file, or "
            "a folder with those of one kind",
        )

    chosen = _files_of_split(files, config)
    paths = _paths(root, chosen)
    patterns = {config.split: [glob.escape(str(path)) for path in paths]}
    (builder,) = kinds

    dataset = _load(
        config,
        lambda: datasets.load_dataset(builder, data_files=patterns, split=config.split),
        paths,
    )
    source = HFSource(dataset, config, chosen)

    # Where some names say a split, the others belong to none.
    splits = [_split_of(file.name) for file in files]
    for file, split in zip(files, splits, strict=True):
        if split is None and any(splits):
            source.left_out.append(LeftOut(file.name, "a data file of no split", False))

    return source


def _paths(root: Path, files: Sequence[FoundFile]) -> list[Path]:
    return [root / file.name for file in files]


def _has_card_with_files(root: Path) -> bool:
    """Return True if the folder has a card of the hub that lists data files."""
    from huggingface_hub import metadata_load

    card = root / "README.md"
    try:
        return bool(card.is_file() and (metadata_load(card) or {}).get("configs"))
    except Exception:  # no card of the hub, for any reason
        return False


def _check_no_pattern(root: Path, config: AnchorsConfig) -> None:
    if glob.escape(str(root)) != str(root):
        raise SourceError(
            "path",
            f"{config.path} has one of the signs [ ] ? * in its name, which `datasets` takes for a pattern; rename it, "
            "or give a link to it",
        )


def _files_of_split(files: Sequence[FoundFile], config: AnchorsConfig) -> list[FoundFile]:
    """Return the files that belong to the split asked for; all of them are `train` where no name says a split.

    Raises:
        SourceError: there are none.
    """
    splits = [_split_of(file.name) for file in files]
    found = {split for split in splits if split} or {"train"}
    meant = split_meant(config.split)
    if meant not in found:
        raise SourceError(
            "split",
            f"{config.path} has the splits {', '.join(sorted(found))} (by the names of its files), found "
            f"{config.split!r}; choose one of them",
        )

    if not any(splits):
        return list(files)
    return [file for file, split in zip(files, splits, strict=True) if split == meant]


def _split_of(name: str) -> str | None:
    """Return the split that a file's name says, or else one of its folders, the innermost one first."""
    path = PurePath(name)
    for part in reversed(path.with_suffix("").parts):
        meant = folder_meant(part)
        if meant in SPLIT_WORDS.values():
            return meant

    # The hub's own form, which may name any split.
    sharded = SHARDED.fullmatch(path.stem)
    return sharded.group(1) if sharded and path.parent.name == "data" else None


def open_saved(root: Path, config: AnchorsConfig) -> HFSource:
    """Open what `save_to_disk` of `datasets` wrote: a data set, or several splits.

    Raises:
        SourceError: no such split, or the folder is damaged.
    """
    import datasets

    saved = _load(config, lambda: datasets.load_from_disk(str(root)))
    if isinstance(saved, datasets.DatasetDict):
        if config.split not in saved:
            raise SourceError(
                "split",
                f"{config.path} has the splits {', '.join(map(str, saved))}, found {config.split!r}",
            )
        saved = saved[config.split]

    return HFSource(saved, config)


def is_saved(root: Path) -> bool:
    """Return True for a folder that `save_to_disk` of `datasets` wrote."""
    is_one = (root / "state.json").is_file() and (root / "dataset_info.json").is_file()
    return is_one or (root / "dataset_dict.json").is_file()


def _load(config: AnchorsConfig, load: Any, files: Sequence[Path] = ()) -> Any:
    """Call a loader of `datasets`, and say in a line what it cannot read."""
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    path = config.path
    # Of a tar that was cut short `datasets` would read the rest.
    _check_whole([file for file in files if file.suffix.lower() == ".tar"])

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub.repocard").setLevel(logging.ERROR)  # a folder needs no card
    try:
        return load()
    except (DatasetNotFoundError, ConnectionError, HfHubHTTPError) as error:
        raise SourceError(
            "path",
            f"{path} was not found on this machine or on the hub; expected a hub id, a parquet file, a folder, "
            f"or digits ({type(error).__name__})",
        ) from error
    except (ValueError, RuntimeError, OSError, DatasetGenerationError, tarfile.TarError) as error:
        # A loading script is a RuntimeError.
        if isinstance(error, InputError):
            raise
        _check_whole(files)
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise SourceError(
            "path", f"{path}, split {config.split}, cannot be read by `datasets`: {reason}"
        ) from error


def _check_whole(files: Sequence[Path]) -> None:
    """Raise SourceError for a file that has not the form its ending promises."""
    for path in files:
        if not _is_whole(path):
            raise SourceError(
                "path",
                f"{path} is damaged or cut short: no whole {path.suffix[1:]} file; fetch or write it again",
            )


def _is_whole(path: Path) -> bool:
    """Return True for a parquet file with a footer, an arrow file or stream, a tar with a beginning and an end."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kind = BUILDERS[path.suffix.lower()]
    try:
        if kind == "parquet":
            pq.read_metadata(path)
        elif kind == "webdataset":
            return _is_whole_tar(path)
        else:
            with pa.memory_map(str(path)) as file:
                _open_arrow(file)
    except (OSError, ValueError, tarfile.TarError):
        return False

    return True


def _is_whole_tar(path: Path) -> bool:
    """Return True for a tar that ends with two empty blocks, as every one does."""
    tarfile.open(path).close()
    with path.open("rb") as file:
        file.seek(-2 * tarfile.BLOCKSIZE, os.SEEK_END)
        return not any(file.read())


def _open_arrow(file: Any) -> None:
    import pyarrow as pa

    try:
        pa.ipc.open_file(file)
    except pa.ArrowInvalid:
        file.seek(0)
        pa.ipc.open_stream(file)


def _undecoded() -> Any:
    from datasets import Image

    return Image(decode=False)


def _plain_binary() -> Any:
    from datasets import Value

    return Value("binary")


def _image_column(dataset: Any, path: str) -> str:
    """Return the column of the images.

    Raises:
        SourceError: there is none, or several that may be it.
    """
    from datasets import Image

    # By the data set's own word, the first one
    features = dataset.features
    for name, feature in features.items():
        # A parquet file without the hub's metadata shows an image as the plain structure {bytes, path}.
        is_plain = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        if isinstance(feature, Image) or is_plain:
            return name

    # Plain bytes, as pandas and polars write them
    of_bytes = [name for name, feature in features.items() if _kind_of_bytes(feature)]
    fitting = [name for name in of_bytes if _holds_images(dataset, name)]
    usual = [name for name in fitting if name.lower() in IMAGE_NAMES]
    if len(usual) == 1 or len(fitting) == 1:
        return (usual or fitting)[0]

    if fitting:
        raise SourceError(
            "path",
            f"{path} has images in the columns {some(usual or fitting)}; expected one such column, or one of them "
            "called image: leave the others out, or rename one",
        )

    no_images = f" ({some(of_bytes)}: bytes that are no images)" if of_bytes else ""
    raise SourceError(
        "path",
        f"{path} has the columns {some(features)}{no_images}; expected one that holds images: encoded (PNG, "
        "JPEG, …), as plain bytes or as `datasets` writes them (cast_column(name, datasets.Image()))",
    )


def _kind_of_bytes(feature: Any) -> str:
    """Return what a column of bytes is for Arrow, `struct` for a plain structure of bytes alone; else nothing."""
    if isinstance(feature, dict):
        return "struct" if set(feature) == {"bytes"} else ""
    kind = str(getattr(feature, "dtype", ""))
    return kind if kind in ("binary", "large_binary", "binary_view") else ""


def _holds_images(dataset: Any, column: str) -> bool:
    """Return True if one of the first cells with something in it is an image."""
    cells = dataset.select_columns([column])[:SAMPLED][column]
    contents = [cell["bytes"] if isinstance(cell, dict) else cell for cell in cells]
    return any(content and is_image(content) for content in contents)


def _label_column(features: Any, columns: Sequence[str], config: AnchorsConfig) -> str | None:
    """Return the recipe's column, else one of class numbers, else another one with a usual name."""
    if config.label:
        return label_column(columns, config.label, config.path)

    of_numbers = [
        name for name in FIRST_NAMES if name in columns and _holds_classes(features[name])
    ]
    with_names = [name for name in columns if _has_class_names(features[name])]
    fitting = of_numbers + with_names
    return fitting[0] if fitting else label_column(columns, "", config.path)


def _has_class_names(feature: Any) -> bool:
    from datasets import ClassLabel

    return isinstance(feature, ClassLabel)


def _holds_classes(feature: Any) -> bool:
    return _has_class_names(feature) or "int" in str(getattr(feature, "dtype", ""))


def _fingerprint(dataset: Any, files: Sequence[FoundFile]) -> str:
    """Return a digest that changes with the content: that of `datasets`, and the state of the local files."""
    told: str = getattr(dataset, "_fingerprint", "")
    if not told or not files:
        return told

    total = hashlib.blake2b(told.encode(), digest_size=16)
    for file in files:
        total.update(repr(tuple(file)).encode())
    return total.hexdigest()
