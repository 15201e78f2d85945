"""Find the images of a folder: every file below it is taken, or left out for a reason that is kept."""

import os
import stat
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple

from ...core import Report
from .decoding import is_image, opens_heif

_IMAGES = """
    .jpg .jpeg .jpe .jfif .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .avif .avifs .jp2 .j2k .jpx
    .tga .heic .heif .hif
"""
_OTHERS = """
    .txt .json .jsonl .csv .tsv .xml .md .html .htm .yaml .yml .toml .log .py .sh .caption .license .readme .lock
    .npy .npz .pkl .pt .pth .ckpt .safetensors .mat .h5 .bin .idx .db .parquet .arrow
    .zip .tar .gz .tgz .bz2 .xz .7z .rar .pdf .eps .ps .doc .docx .mp4 .avi .mov .webm .mp3 .wav
"""

IMAGE_SUFFIXES = frozenset(_IMAGES.split())
"""Files with these endings, in any case, are images without a look inside."""

HEIF_SUFFIXES = frozenset((".heic", ".heif", ".hif"))

OTHER_SUFFIXES = frozenset(_OTHERS.split())
"""Files with these endings are no images, without a look inside. All others are looked at."""

OUTPUTS = frozenset(("model_index.json", "plan.json", "recipe.toml"))
"""Files by which a folder inside the images is a diffusion model, a shard set or a run, with pictures of its own."""

HEADER_BYTES = 4096
TALLIED = 1000
"""Files of a folder after which a walk tells how far it is."""

THREADS = 16
"""Folders listed at once: a walk waits for the disk or the network, not for the processor."""


class FoundFile(NamedTuple):
    """Names a file by its path below the root, with what tells that it is unchanged."""

    name: str
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, name: str, about: os.stat_result) -> "FoundFile":
        """Describe a file by what the system says of it."""
        return cls(name, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@dataclass(frozen=True)
class LeftOut:
    """Names a file that is not taken, and says why; `counts` is True where it may well be an image."""

    name: str
    reason: str
    counts: bool
    is_folder: bool = False
    """Nobody knows how many images are in it."""

    @property
    def line(self) -> str:
        """Return `name (reason)`."""
        return f"{self.name} ({self.reason})"


@dataclass
class FoundFiles:
    """Holds what a walk found, sorted by path: images, metadata files, and files that are not taken."""

    images: list[FoundFile] = field(default_factory=list)
    tables: list[FoundFile] = field(default_factory=list)
    """`metadata.csv`, `metadata.jsonl` and `metadata.parquet`."""
    data_files: list[FoundFile] = field(default_factory=list)
    """Parquet, arrow and tar files, which may hold images."""
    left_out: list[LeftOut] = field(default_factory=list)


class _Folder(NamedTuple):
    """Names a folder to list, with the identities of those above it, by which a loop of links is recognised."""

    name: str
    above: frozenset[tuple[int, int]]


class _Tally:
    """Counts the files that all threads have seen, and tells it now and then."""

    def __init__(self, report: Report | None):
        self._report = report
        self._lock = threading.Lock()
        self._seen = 0

    def add(self, files: int) -> None:
        """Count some files more."""
        if self._report is None:
            return
        with self._lock:
            self._seen += files
            self._report(self._seen, 0)


def find_files(root: Path, report: Report | None = None) -> FoundFiles:
    """Walk `root` and everything below it, through links too, many folders at once.

    Args:
        report: called with (files seen, 0), from several threads, one at a time.

    Raises:
        OSError: the root cannot be listed.
    """
    found = FoundFiles()
    level = [_Folder("", frozenset())]
    tally = _Tally(report)

    with ThreadPoolExecutor(THREADS) as threads:
        while level:
            listings = threads.map(lambda folder: _list_folder(root, folder, tally), level)
            level = []
            for listing, folders in listings:
                found.images += listing.images
                found.tables += listing.tables
                found.data_files += listing.data_files
                found.left_out += listing.left_out
                level += folders

    found.images.sort()
    found.tables.sort()
    found.data_files.sort()
    found.left_out.sort(key=lambda file: file.name)
    return found


def _list_folder(root: Path, folder: _Folder, tally: _Tally) -> tuple[FoundFiles, list[_Folder]]:
    """Return the files of one folder, and the folders in it."""
    found = FoundFiles()
    folders = []

    try:
        here = (root / folder.name).stat()
        entries = list(os.scandir(root / folder.name))
    except OSError as error:
        if not folder.name:
            raise
        found.left_out.append(
            LeftOut(folder.name + "/", f"cannot be listed: {error.strerror}", True, is_folder=True)
        )
        return found, []

    if folder.name and any(entry.name in OUTPUTS for entry in entries):
        found.left_out.append(LeftOut(folder.name + "/", "a model, a shard set or a run", False))
        return found, []

    above = folder.above | {(here.st_dev, here.st_ino)}
    for number, entry in enumerate(entries, start=1):
        if number % TALLIED == 0 or number == len(entries):
            tally.add((number - 1) % TALLIED + 1)

        name = f"{folder.name}/{entry.name}" if folder.name else entry.name
        if entry.name.startswith((".", "__")):
            found.left_out.append(LeftOut(name, "hidden", False))
            continue

        try:
            about = entry.stat()
        except OSError as error:
            is_image = _suffix(name) in IMAGE_SUFFIXES
            reason = "dangling link" if entry.is_symlink() else f"cannot be read: {error.strerror}"
            found.left_out.append(LeftOut(name, reason, is_image))
            continue

        if stat.S_ISDIR(about.st_mode):
            if (about.st_dev, about.st_ino) in above:
                found.left_out.append(LeftOut(name + "/", "link to a folder above it", False))
            else:
                folders.append(_Folder(name, above))
            continue

        _sort_file(root, name, about, found)

    return found, folders


def _sort_file(root: Path, name: str, about: os.stat_result, found: FoundFiles) -> None:
    """Put a file where it belongs: by its ending or, where that says nothing, by its first bytes."""
    file = FoundFile.of(name, about)
    suffix = _suffix(name)

    if not stat.S_ISREG(about.st_mode):
        found.left_out.append(LeftOut(name, "no regular file", False))
    elif suffix in HEIF_SUFFIXES and not opens_heif():
        reason = "HEIC, which pip install 'clsp[heif]' makes readable"
        found.left_out.append(LeftOut(name, reason, True))
    elif suffix in IMAGE_SUFFIXES:
        found.images.append(file)
    elif Path(name).stem == "metadata" and suffix in (".csv", ".jsonl", ".parquet"):
        found.tables.append(file)
    elif suffix in (".parquet", ".arrow", ".tar"):
        found.data_files.append(file)
    elif suffix not in OTHER_SUFFIXES and _begins_like_an_image(root / name):
        found.images.append(file)
    else:
        found.left_out.append(LeftOut(name, f"no image ({suffix or 'no suffix'})", False))


def _suffix(name: str) -> str:
    return PurePath(name).suffix.lower()


def _begins_like_an_image(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return is_image(file.read(HEADER_BYTES))
    except OSError:
        return False


def printable(name: str) -> str:
    """Return a file's name for people and for JSON: bytes that are no UTF-8 become question marks."""
    return name.encode(errors="replace").decode()


def reasons_of(left_out: Iterable[LeftOut]) -> list[str]:
    """Return texts such as `3 dangling link, such as cats/1.png`, the most frequent reason first."""
    told = []
    for reason, files in count_by_reason(left_out).items():
        told.append(f"{len(files)} {reason}, such as {files[0].name}")

    return told


def count_by_reason(left_out: Iterable[LeftOut]) -> dict[str, list[LeftOut]]:
    """Group files by the reason, the most frequent one first."""
    groups: dict[str, list[LeftOut]] = {}
    for file in left_out:
        groups.setdefault(file.reason, []).append(file)

    by_count = sorted(groups.items(), key=lambda group: (-len(group[1]), group[0]))
    return dict(by_count)
