"""Turn values into canonical JSON, and say in what two of them differ."""

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and a final newline: equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def json_line(row: Mapping[str, Any]) -> str:
    """Return a row of a log as one line of JSON, which knows no NaN: a figure that is not finite is null.

    >>> json_line({"step": 50, "loss": 0.25, "knn": float("nan")})
    '{"step": 50, "loss": 0.25, "knn": null}\\n'
    """
    values = {}
    for name, value in row.items():
        is_figure = isinstance(value, float) and not math.isfinite(value)
        values[name] = None if is_figure else value

    return json.dumps(values, ensure_ascii=False, allow_nan=False) + "\n"


def first_fault(error: ValidationError) -> str:
    """Return `field: what is wrong with it` for the first field that does not validate."""
    fault = error.errors()[0]
    field = ".".join(str(part) for part in fault["loc"])
    return f"{field}: {fault['msg']}"


class DifferentValue(NamedTuple):
    """Names a value in which two nested mappings differ, and the value in each; None where one has none.

    >>> different_values({"a": {"b": 1, "c": 2}}, {"a": {"b": 3, "c": 2}})
    [DifferentValue(key='a.b', old=1, new=3)]
    """

    key: str
    old: Any
    new: Any


def different_values(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[DifferentValue]:
    """Return every value in which two nested mappings differ, those of the new one in its order, then the old one's."""
    found = []
    for section in {**new, **old}:
        before = old.get(section)
        after = new.get(section)
        if isinstance(before, dict) and isinstance(after, dict):
            for value in different_values(before, after):
                found.append(value._replace(key=f"{section}.{value.key}"))
        elif before != after:
            found.append(DifferentValue(section, before, after))

    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return `section.key: old there, new here` for every value in which two nested mappings differ."""
    rows = []
    for value in different_values(old, new):
        rows.append(f"{value.key}: {value.old} there, {value.new} here")

    return rows
