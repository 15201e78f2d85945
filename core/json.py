"""Turn values into canonical JSON, and say in what two of them differ."""

import json
import math
from collections.abc import Mapping
from typing import Any

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


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return `section.key: old there, new here` for every value in which two nested mappings differ."""
    rows = []
    # In the order of the new mapping, then what the old one alone has.
    for section in new | old:
        before = old.get(section)
        after = new.get(section)
        if isinstance(before, dict) and isinstance(after, dict):
            rows += [f"{section}.{row}" for row in differences(before, after)]
        elif before != after:
            rows.append(f"{section}: {before} there, {after} here")

    return rows
