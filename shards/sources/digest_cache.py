"""The digest of a source, kept beside what is made of it: reading a million images at every start takes minutes."""

import json
from pathlib import Path

from ...core import write_file
from .images import ImageSource


def remember_digest(anchors: ImageSource, path: Path) -> None:
    """Give the anchors their digest from the file at `path`, if it is of this very source; else compute and keep it.

    A source is the same while its fingerprint is: `datasets` takes it from the files' names, sizes and times, or from
    the hub's commit. Sources without a fingerprint are read again.
    """
    source = {
        "fingerprint": anchors.source.fingerprint,
        "count": anchors.source_count,
        "config": _reading(anchors),
    }

    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}

    if (
        source["fingerprint"]
        and isinstance(known, dict)
        and {key: known.get(key) for key in source} == source
    ):
        anchors.__dict__["digest"] = known["digest"]  # the cached property
    elif source["fingerprint"]:
        write_file(path, json.dumps({**source, "digest": anchors.digest}).encode())


def _reading(anchors: ImageSource) -> list[str]:
    return [anchors.config.path, anchors.config.split, anchors.config.on_error]
