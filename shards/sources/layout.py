"""Tell which folder names are splits and which are classes, and which images belong to the split asked for."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .errors import SourceError
from .names import some
from .walk import LeftOut, printable

Layout = Literal["auto", "classes", "splits", "flat"]

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "unlabeled": "unlabeled",
    "unlabelled": "unlabeled",
}
"""Folder names, in lower case, that are splits, and the split that each means."""

PICTURE_FOLDERS = frozenset(("images", "image", "imgs", "img", "jpegimages", "jpg"))
"""Folder names, in lower case, that no class has: what lies beside is masks, annotations or parts of the images."""

OUTSIDE_SPLITS = "outside the folders of splits"
OUTSIDE_CLASSES = {
    "classes": "outside the folders of classes (anchors.layout=flat takes all, without classes)",
    "splits": "outside the folders of classes",
}


@dataclass
class SplitImages:
    """Holds the images of one split, by their paths below the root, and the class of each (-1 without one)."""

    folder: str
    names: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)

    def class_counts(self, class_names: Sequence[str]) -> dict[str, int]:
        """Return the number of images of each class."""
        counts = dict.fromkeys(class_names, 0)
        for label in self.labels:
            if label >= 0:
                counts[class_names[label]] += 1
        return counts


@dataclass
class Arrangement:
    """Says what was taken for what: splits by their names, the classes of all of them, and what fits nowhere."""

    layout: Literal["classes", "splits", "flat"]
    splits: dict[str, SplitImages]
    class_names: tuple[str, ...] | None
    left_out: list[LeftOut] = field(default_factory=list)

    def split(self, asked: str, where: str) -> SplitImages:
        """Return the images of a split.

        Raises:
            SourceError: there is no such split.
        """
        # By its very name, else by what it means
        if asked in self.splits:
            return self.splits[asked]

        fitting = [name for name in self.splits if folder_meant(name) == split_meant(asked)]
        if len(fitting) > 1:
            raise SourceError(
                "split",
                f"the folders {some(fitting)} of {where} all mean the split {asked!r}; give the name of one of them",
            )
        if fitting:
            return self.splits[fitting[0]]

        if self.layout == "splits":
            known = ", ".join(images.folder for images in self.splits.values())
            raise SourceError(
                "split", f"{where} has the splits {known}, found {asked!r}; choose one of them"
            )

        folders = "its folders are taken for classes" if self.class_names else "it has no classes"
        raise SourceError(
            "split",
            f"{where} has no split {asked!r}: {folders}, and all its images are split train; put the images of each "
            "split into a folder of that name",
        )


def split_meant(name: str) -> str:
    """Return the split that a name means: `val` and `Validation` mean `validation`; other names mean themselves."""
    return SPLIT_WORDS.get(name.lower(), name)


def folder_meant(folder: str) -> str:
    """Return the split that a folder's name means, also by one word of several; others mean themselves.

    >>> folder_meant("Train"), folder_meant("val2017"), folder_meant("seg_test"), folder_meant("cats")
    ('train', 'validation', 'test', 'cats')
    """
    words = [folder.lower(), *re.findall("[a-z]+", folder.lower())]
    meant = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return meant.pop() if len(meant) == 1 else folder


def natural_order(names: Iterable[str]) -> list[str]:
    """Sort names as texts or, where all are numbers, as numbers.

    >>> natural_order(["10", "2"]), natural_order(["b10", "b2"])
    (['2', '10'], ['b10', 'b2'])
    """
    ordered = sorted(names)
    if all(name.isdecimal() for name in ordered):
        ordered.sort(key=int)
    return ordered


def arrange(names: Sequence[str], layout: Layout, where: str) -> Arrangement:
    """Arrange images by the folders that they are in.

    Args:
        names: paths below the root, sorted.
        layout: what the first folder of a path is: a class, a split (whose subfolders are classes) or nothing.
            `auto` takes folders for splits if all of them are called like splits (`train`, `Test`, `val2017`,
            `seg_train`, …), and for classes if none is.
        where: the source, for messages.

    Raises:
        SourceError: some folders are called like splits and others not, or two are the same split.
    """
    is_auto = layout == "auto"
    base = _shared_folder(names) if is_auto else ""
    folders = sorted({first for name in names if (first := _first_folder(name, base))})

    if is_auto:
        layout = _guess(names, folders, base, where)

    if layout == "flat":
        flat = SplitImages("", list(names), [-1] * len(names))
        return Arrangement("flat", {"train": flat}, None)

    prefixes = {"train": base}
    if layout == "splits":
        prefixes = _class_prefixes(names, {folder: f"{base}{folder}/" for folder in folders})

    arrangement = _arrange_splits(names, prefixes, layout, where)
    if is_auto:
        _check_classes_of_pictures(arrangement, where)
    return arrangement


def _guess(
    names: Sequence[str], folders: Sequence[str], base: str, where: str
) -> Literal["classes", "splits", "flat"]:
    """Say what the folders are, by their names."""
    as_splits = [folder for folder in folders if folder.lower() in SPLIT_WORDS]
    others = [folder for folder in folders if folder.lower() not in SPLIT_WORDS]

    # Names such as train2017 and val2017, too, but not the classes train_station and bus_stop.
    meant = {folder_meant(folder) for folder in folders}
    all_are_splits = meant <= set(SPLIT_WORDS.values())
    if all_are_splits and (as_splits or len(meant) > 1):
        return "splits"

    if as_splits and others:
        raise SourceError(
            "path",
            f"{where} has folders called like splits ({some(as_splits)}) beside others ({some(others)}); set "
            "anchors.layout to classes (every folder is a class), splits (every folder is a split) or flat (neither)",
        )

    # One folder of images, or none, tells no classes apart.
    return "classes" if len(others) > 1 else "flat"


def _check_classes_of_pictures(arrangement: Arrangement, where: str) -> None:
    """Refuse a folder called `images` as one class beside others, which would be masks or the like."""
    classes = arrangement.class_names or ()
    pictures = [name for name in classes if name.lower() in PICTURE_FOLDERS]
    others = [name for name in classes if name.lower() not in PICTURE_FOLDERS]
    if not pictures or not others:
        return

    raise SourceError(
        "path",
        f"{where} has the folder {pictures[0]} beside others ({some(others)}), which look like no classes; give the "
        f"folder {pictures[0]} alone, or set anchors.layout={arrangement.layout} if every one is a class",
    )


def _class_prefixes(names: Sequence[str], prefixes: dict[str, str]) -> dict[str, str]:
    """Return where the folders of classes begin in each split: below `train/`, or `train/train/` if that holds all."""
    below = {}
    folders = {}
    for split, prefix in prefixes.items():
        below[split] = [name for name in names if name.startswith(prefix)]
        folders[split] = {_first_folder(name, prefix) for name in below[split]}

    # In how many splits a folder's name occurs
    splits_with = Counter(folder for found in folders.values() for folder in found)

    deeper = {}
    for split, prefix in prefixes.items():
        only = next(iter(folders[split]))
        is_shared = len(folders[split]) == 1 and only and splits_with[only] == 1
        holds_folders = is_shared and all(
            _first_folder(name, f"{prefix}{only}/") for name in below[split]
        )
        deeper[split] = f"{prefix}{only}/" if holds_folders else prefix

    return deeper


def _arrange_splits(
    names: Sequence[str],
    prefixes: dict[str, str],
    layout: Literal["classes", "splits"],
    where: str,
) -> Arrangement:
    """Arrange images whose split is told by the prefix of the path, and whose class is the next folder."""
    by_split = {split: SplitImages(prefix.rstrip("/")) for split, prefix in prefixes.items()}
    _check_twice_the_same(by_split, where)
    left_out = []

    # Share the images out.
    for name in names:
        split = next((split for split, prefix in prefixes.items() if name.startswith(prefix)), None)
        if split is None:
            left_out.append(LeftOut(name, OUTSIDE_SPLITS, True))
        else:
            by_split[split].names.append(name)

    # Find the classes: the folders of all splits together, so that a number means the same in each.
    folders = {}
    found: set[str] = set()
    for split, images in by_split.items():
        folders[split] = {_first_folder(name, prefixes[split]) for name in images.names} - {""}
        if layout == "classes" or len(folders[split]) > 1:
            found |= folders[split]

    class_names = natural_order(found)
    numbers = {name: number for number, name in enumerate(class_names)}

    # Give every image its class.
    for split, images in by_split.items():
        has_classes = bool(folders[split]) and folders[split] <= found
        everything = images.names
        images.names = []

        for name in everything:
            folder = _first_folder(name, prefixes[split])
            if has_classes and not folder:
                left_out.append(LeftOut(name, OUTSIDE_CLASSES[layout], True))
                continue

            images.names.append(name)
            images.labels.append(numbers[folder] if has_classes else -1)

    shown = tuple(printable(name) for name in class_names)
    return Arrangement(layout, by_split, shown or None, left_out)


def _check_twice_the_same(splits: dict[str, SplitImages], where: str) -> None:
    meant: dict[str, str] = {}
    for name in splits:
        other = meant.setdefault(split_meant(name), name)
        if other != name:
            raise SourceError(
                "path",
                f"{where} has the folders {other} and {name}, which mean the same split; rename or join them, or set "
                "anchors.layout=classes",
            )


def _first_folder(name: str, base: str) -> str:
    """Return the folder that follows `base` in a path; empty for an image directly in it or outside."""
    if not name.startswith(base):
        return ""
    folder, slash, _ = name[len(base) :].partition("/")
    return folder if slash else ""


def _shared_folder(names: Sequence[str]) -> str:
    """Return the folders that all images share, such as `data/` of `data/cats/…` and `data/dogs/…`, but no split."""
    base = ""
    while True:
        firsts = {_first_folder(name, base) for name in names}
        only = next(iter(firsts), "")
        if len(firsts) != 1 or not only or only.lower() in SPLIT_WORDS:
            return base
        base += f"{only}/"
