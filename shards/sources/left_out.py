"""Say which files of a source are not taken, and stop where these are too many to be meant."""

import json
from collections.abc import Sequence
from pathlib import Path

from ...core import write_file
from .errors import SourceError
from .walk import LeftOut, count_by_reason, reasons_of

MOST = 0.01
"""Share of the files that may be images and are left out; above, a command stops."""


def check_left_out(left_out: Sequence[LeftOut], taken: int, path: str, on_error: str) -> None:
    """Stop if more than 1 % of what may be an image is left out, or a whole folder, unless the recipe says to skip it.

    Raises:
        SourceError: with the reasons, and a file of each.
    """
    missed = [file for file in left_out if file.counts]
    has_folder = any(file.is_folder for file in missed)
    is_little = len(missed) <= MOST * (taken + len(missed)) and not has_folder
    if on_error == "skip" or is_little:
        return

    found = f"{len(missed)} of {taken + len(missed)} images would be left out"
    raise SourceError(
        "path",
        f"{path}: {found} ({'; '.join(reasons_of(missed))}), expected at most 1 %; mend them, or set "
        "anchors.on_error=skip to go on without them (clsp images --left-out lists all)",
    )


def write_left_out(path: Path, left_out: Sequence[LeftOut], source: str) -> None:
    """List all files of a source that are not taken: `counts` by reason, and every `file` with its reason."""
    groups = count_by_reason(left_out)
    content = {
        "source": source,
        "counts": {reason: len(files) for reason, files in groups.items()},
        "files": [{"file": file.name, "reason": file.reason} for file in left_out],
    }
    write_file(
        path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode(errors="replace")
    )
