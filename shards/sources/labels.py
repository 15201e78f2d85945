"""Make class numbers of what a column holds: numbers, words, truth values."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .errors import SourceError
from .layout import natural_order

FIRST_NAMES = ("label", "labels", "fine_label", "coarse_label", "class")
"""Columns that are taken for the classes where none is named, the first one first, and ever have been."""

LABEL_NAMES = (*FIRST_NAMES, "cls", "class_label", "class_name", "category", "target")
"""Columns that are taken, in any case, where there is none of those."""

MOST_WORDS = 0.5
"""Words that differ in more than this share of the images are captions, no classes."""

FEW = 100
"""As many different words may be classes in any case."""


@dataclass(frozen=True)
class Classes:
    """Holds the class number of every image (None without one), and the names of the classes where they have some."""

    labels: list[int | None]
    names: tuple[str, ...] | None = None


def classes_of(values: Sequence[Any], column: str, where: str) -> Classes:
    """Return the classes that a column tells.

    Whole numbers are class numbers. Words become numbers in sorted order (as numbers, where all are numbers), truth
    values are the classes `false` and `true`; a blank is no class.

    Raises:
        SourceError: the column holds something else, which is named.

    >>> classes_of(["dog", "cat", ""], "animal", "zoo.csv")
    Classes(labels=[1, 0, None], names=('cat', 'dog'))
    >>> classes_of([2.0, 0.0, float("nan")], "label", "zoo.csv").labels
    [2, 0, None]
    """
    told = [_stripped(value) for value in values]
    known = [value for value in told if value is not None]
    if not known:
        raise SourceError(
            "label", f"the column {column!r} of {where} is empty; name another one by anchors.label"
        )

    # Truth values first: Python takes them for numbers too.
    if all(isinstance(value, bool) for value in known):
        return _named(told, ("false", "true"), {False: 0, True: 1})

    if all(_is_whole(value) for value in known):
        return Classes([None if value is None else int(value) for value in told])

    if all(isinstance(value, str) for value in known):
        words = natural_order(set(known))
        if len(words) > max(FEW, MOST_WORDS * len(known)):
            raise SourceError(
                "label",
                f"the column {column!r} of {where} holds {len(words)} different texts for {len(known)} images "
                f"({known[0]!r}, …), which are no classes; name another column by anchors.label",
            )
        return _named(told, tuple(words), {word: number for number, word in enumerate(words)})

    odd = next(value for value in known if not _is_whole(value))
    raise SourceError(
        "label",
        f"the column {column!r} of {where} holds {str(odd)[:40]!r}; expected whole numbers alone, words alone or truth "
        "values alone (anchors.label names another column)",
    )


def label_column(columns: Sequence[str], asked: str, where: str) -> str | None:
    """Return the column of the classes: the one asked for, else one with a usual name, in any case, else None.

    Raises:
        SourceError: the column that was asked for is not there.
    """
    if asked:
        if asked not in columns:
            raise SourceError(
                "label", f"{where} has no column {asked!r}; it has {', '.join(columns) or 'none'}"
            )
        return asked

    exact = next((name for name in FIRST_NAMES if name in columns), None)
    if exact:
        return exact

    by_lower_case = {column.lower(): column for column in reversed(columns)}
    return next((by_lower_case[name] for name in LABEL_NAMES if name in by_lower_case), None)


@dataclass(frozen=True)
class FoundClasses:
    """Holds the classes that a column tells, or a note that says why it tells none."""

    classes: Classes | None
    note: str = ""


def find_classes(values: Sequence[Any], column: str, asked: str, where: str) -> FoundClasses:
    """Return the classes that a column tells; one that nobody asked for may tell none.

    Raises:
        SourceError: the column that was asked for holds no classes.
    """
    try:
        return FoundClasses(classes_of(values, column, where))
    except SourceError as error:
        if asked:
            raise
        return FoundClasses(None, f"no classes: {error.reason}")


def unknown_column_note(columns: Sequence[str], where: str) -> str:
    """Return the note about a table in which no column is called like one of classes."""
    others = ", ".join(columns)
    return (
        f"no classes: {where} has the columns {others}; anchors.label names the one that tells them"
    )


def label_rule(column: str, holds_integers: bool, asked: str) -> str:
    """Return the rule that a plan records for labels which earlier versions did not read; else nothing."""
    was_read = holds_integers and bool(asked or column in FIRST_NAMES)
    return "" if was_read else f"column {column}"


def _stripped(value: Any) -> Any:
    """Return a value without spaces around it, and None for a blank."""
    if isinstance(value, str):
        return value.strip() or None
    is_nan = isinstance(value, float) and math.isnan(value)
    return None if is_nan else value


def _is_whole(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and float(value).is_integer()


def _named(told: Sequence[Any], names: tuple[str, ...], numbers: dict[Any, int]) -> Classes:
    return Classes([None if value is None else numbers[value] for value in told], names)
