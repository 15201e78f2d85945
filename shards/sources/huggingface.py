"""Read image sources through Hugging Face `datasets`: the hub, parquet, arrow, WebDataset tars, `save_to_disk`."""

import glob
import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from ...core import InputError
from .config import AnchorsConfig
from .errors import SourceError
from .labels import LABEL_NAMES, Classes, FoundClasses, find_classes
from .walk import FoundFile, LeftOut

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "webdataset"}
"""The readers of `datasets` for files with these endings."""


class HFSource:
    """Reads one split of a data set that `datasets` has opened.

    The image column is the first one that holds images; the classes are those of the recipe's `anchors.label` or, where
    that is empty, of a column with a usual name, else of the first column of class labels.
    """

    def __init__(self, dataset: Any, config: AnchorsConfig, files: Sequence[FoundFile] = ()):
        path = config.path
        local = Path(path).expanduser()
        self.name = local.name if local.exists() else path
        self.licence = dataset.info.license or ""
        self.fingerprint: str = _fingerprint(dataset, files)
        self.left_out: list[LeftOut] = []

        # Choose the columns, and keep images encoded.
        self._image_column = _image_column(dataset.features, path)
        found = _find_classes(dataset, self._image_column, config)
        self.notes = [found.note] if found.note else []
        self.class_names = found.classes.names if found.classes else None
        self._labels = found.classes.labels if found.classes else None
        images = dataset.select_columns([self._image_column])
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
    about = path.stat()
    file = FoundFile(str(path), about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    return HFSource(dataset, config, [file])


def open_data_files(root: Path, config: AnchorsConfig, files: Sequence[FoundFile]) -> HFSource:
    """Open a folder of parquet, arrow or tar files, as a repository of the hub holds them.

    Raises:
        SourceError: no such split, or a file is damaged.
    """
    import datasets

    if glob.escape(str(root)) != str(root):
        raise SourceError(
            "path",
            f"{config.path} has one of the signs [ ] ? * in its name, which `datasets` takes for a pattern; rename it, "
            "or give a link to it",
        )

    def load() -> Any:
        return datasets.load_dataset(str(root), split=config.split)

    return HFSource(_load(config, load, [root / file.name for file in files]), config, files)


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
    except (ValueError, RuntimeError, OSError, DatasetGenerationError) as error:
        # A loading script is a RuntimeError.
        if isinstance(error, InputError):
            raise
        cause = error.__cause__ or error
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        damaged = _damaged_file(files)
        where = f"{damaged} of {path}" if damaged and damaged != Path(path) else path
        raise SourceError(
            "path", f"{where}, split {config.split}, cannot be read: {reason}"
        ) from error


def _damaged_file(files: Sequence[Path]) -> Path | None:
    """Return the first parquet file that has no footer."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        if path.suffix.lower() == ".parquet":
            try:
                pq.read_metadata(path)
            except (OSError, pa.ArrowInvalid):
                return path

    return None


def _undecoded() -> Any:
    from datasets import Image

    return Image(decode=False)


def _image_column(features: Any, path: str) -> str:
    from datasets import Image

    for name, feature in features.items():
        # A parquet file without the hub's metadata shows an image as the plain structure {bytes, path}.
        is_plain = isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        if isinstance(feature, Image) or is_plain:
            return name

    raise SourceError(
        "path", f"{path} has the columns {', '.join(features)}; expected one that holds images"
    )


def _find_classes(dataset: Any, image_column: str, config: AnchorsConfig) -> FoundClasses:
    """Return the classes of the recipe's column, else of a usual one, else of the first of class labels."""
    from datasets import ClassLabel

    features = dataset.features
    usual = [name for name in features if name.lower() in LABEL_NAMES]
    class_labels = [name for name in features if isinstance(features[name], ClassLabel)]
    asked = config.label

    if not asked and not usual and class_labels:
        asked = class_labels[0]
    if not asked and not usual:
        return FoundClasses(None)

    columns = [name for name in features if name != image_column]
    chosen = asked or min(usual, key=lambda name: LABEL_NAMES.index(name.lower()))
    values = {name: dataset[name][:] if name == chosen else () for name in columns}
    found = find_classes(values, asked, config.path)
    if found.classes and chosen in class_labels:
        return FoundClasses(Classes(found.classes.labels, tuple(features[chosen].names)))

    return found


def _fingerprint(dataset: Any, files: Sequence[FoundFile]) -> str:
    """Return a digest that changes with the content: that of `datasets`, and the state of the local files."""
    told: str = getattr(dataset, "_fingerprint", "")
    if not told or not files:
        return told

    total = hashlib.blake2b(told.encode(), digest_size=16)
    for file in files:
        total.update(repr(tuple(file)).encode())
    return total.hexdigest()
