"""Find anchors that do not decode before the work, list them and leave them out (`anchors.on_error = "skip"`)."""

import json
from pathlib import Path
from typing import Any

from ...core import InputError, Report, write_file
from .errors import SourceError
from .images import ImageSource


def screened(
    anchors: ImageSource, listing: Path | None = None, report: Report | None = None
) -> ImageSource:
    """Return the anchors that decode, in their order and with their own keys; all of them, unread, on `fail`.

    Args:
        listing: file that names what is skipped and why; one that is there already saves looking at every image again.
        report: called with (images looked at, images).

    Raises:
        InputError: none decodes.
    """
    if anchors.config.on_error == "fail":
        return anchors

    skipped = _listed(anchors, listing)
    if skipped is None:
        skipped = anchors.look("pixels", report).unreadable
        if listing:
            rows = []
            for index, why in skipped.items():
                rows.append({"key": anchors.key(index), "index": index, "reason": why})

            content = {**_source(anchors), "skipped": rows}
            text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            write_file(listing, text.encode(errors="replace"))

    if len(skipped) == len(anchors):
        raise SourceError(
            "path",
            f"none of the {len(anchors)} images of {anchors.config.path} decodes; the first: {skipped[0]}",
        )

    return anchors.without(skipped)


def _source(anchors: ImageSource) -> dict[str, Any]:
    return {"source": anchors.source.name, "split": anchors.config.split, "count": len(anchors)}


def _listed(anchors: ImageSource, listing: Path | None) -> dict[int, str] | None:
    """Return the anchors that an earlier listing of this source skips, if all of them still do not decode."""
    if listing is None or not listing.exists():
        return None

    source = _source(anchors)
    try:
        content = json.loads(listing.read_text())
        skipped = {int(row["index"]): str(row["reason"]) for row in content["skipped"]}
        is_same_source = {key: content[key] for key in source} == source
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{listing} is no list of skipped anchors; remove it") from error

    if not is_same_source:
        return None

    for index in skipped:
        is_still_unreadable = 0 <= index < len(anchors) and anchors.why_unreadable(index)
        if not is_still_unreadable:
            return None

    return skipped
