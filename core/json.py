"""Turn values into canonical JSON, and say in what two of them differ."""

import json
from typing import Any

from pydantic import ValidationError


def canonical_json(value: object) -> bytes:
    """Return JSON with sorted keys and a final newline: equal values give equal bytes."""
    text = json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


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
