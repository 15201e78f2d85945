"""Read image sources through Hugging Face `datasets`: the hub, local parquet files, local folders."""

from pathlib import Path
from typing import Any, cast

from ...core import local_path
from ...core.paths import FILE
from .errors import SourceError

LABEL_NAMES = ("label", "labels", "fine_label", "coarse_label", "class")


class HFSource:
    """Reads one split of a data set, by hub id or local path.

    The image column is the first one that holds images; the label column is `label` or, where that is empty, the one
    of that name (or a usual variant), else the first class label.
    """

    def __init__(self, path: str, split: str, label: str = ""):
        self._dataset = _load(path, split)
        # A path with ~ has always been recorded as it was given.
        plain = local_path(path) if path.startswith(FILE) else path
        self.name = Path(plain).name if Path(plain).exists() else path
        self.licence = self._dataset.info.license or ""
        # Taken from the files' metadata, or from the hub's commit.
        self.fingerprint: str = getattr(self._dataset, "_fingerprint", "")

        # Choose the columns, and keep images encoded.
        features = self._dataset.features
        image_column = _image_column(features, path)
        label_column = _named_column(features, label, path) if label else _label_column(features)
        images = self._dataset.select_columns([image_column])
        self._images = images.cast_column(image_column, _undecoded())
        self._labels = None if label_column is None else self._dataset[label_column][:]
        self._image_column = image_column

    def __len__(self) -> int:
        return len(self._dataset)

    def content(self, index: int) -> bytes:
        """Return the encoded bytes of an image, as the source holds them; none where it has no image."""
        cell = cast("dict[str, Any] | None", self._images[index][self._image_column])
        if not cell or not (cell["bytes"] or cell["path"]):
            return b""
        return cell["bytes"] or Path(cell["path"]).read_bytes()

    def label(self, index: int) -> int | None:
        """Return the class number, or None without one."""
        return None if self._labels is None else self._labels[index]


def _undecoded() -> Any:
    from datasets import Image

    return Image(decode=False)


def _load(path: str, split: str) -> Any:
    import datasets
    from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
    from huggingface_hub.errors import HfHubHTTPError

    local = Path(local_path(path))
    looks_local = (
        path.startswith((".", "/", "~", FILE))
        or local.suffix in (".parquet", ".arrow")
        or path.count("/") > 1
    )
    if looks_local and not local.exists():
        raise SourceError(
            "path", f"{path} does not exist; expected a hub id, a parquet file, a folder, or digits"
        )

    datasets.disable_progress_bars()
    try:
        if local.is_file():
            return datasets.load_dataset("parquet", data_files={split: str(local)}, split=split)
        return datasets.load_dataset(str(local) if looks_local else path, split=split)
    except (DatasetNotFoundError, ConnectionError, FileNotFoundError, HfHubHTTPError) as error:
        raise SourceError(
            "path",
            f"{path} was not found on this machine or on the hub; expected a hub id, a parquet file, "
            f"a folder, or digits ({type(error).__name__})",
        ) from error
    except (ValueError, RuntimeError, DatasetGenerationError) as error:
        # A loading script is a RuntimeError.
        raise SourceError(
            "path", f"{path} split {split} cannot be read: {str(error).splitlines()[0]}"
        ) from error


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


def _holds_classes(feature: Any) -> bool:
    from datasets import ClassLabel

    return isinstance(feature, ClassLabel) or "int" in str(getattr(feature, "dtype", ""))


def _named_column(features: Any, name: str, path: str) -> str:
    if name not in features or not _holds_classes(features[name]):
        usable = [column for column in features if _holds_classes(features[column])]
        found = ", ".join(usable) or "none"
        raise SourceError(
            "label", f"{path} has no column {name!r} of class numbers; expected one of: {found}"
        )

    return name


def _label_column(features: Any) -> str | None:
    from datasets import ClassLabel

    for name in LABEL_NAMES:
        if name in features and _holds_classes(features[name]):
            return name

    for name, feature in features.items():
        if isinstance(feature, ClassLabel):
            return name

    return None
