"""Keep the digest of a source beside what is made of it: reading a million images at every start takes minutes."""

import contextlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ...core import write_file
from .images import ImageSource


class SourceState(BaseModel):
    """Gives the facts by which a source is recognised as unchanged."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    count: int
    config: list[str]


class KnownDigest(SourceState):
    """Holds a source's digest as it is kept in a file, with the state of the source that it belongs to."""

    digest: str

    def belongs_to(self, state: SourceState) -> bool:
        """Return True if the digest is that of a source in this state."""
        mine = (self.fingerprint, self.count, self.config)
        return mine == (state.fingerprint, state.count, state.config)


def remember_digest(anchors: ImageSource, path: Path) -> None:
    """Give the anchors their digest from the file at `path`, if it is of this very source; else compute and keep it.

    A source is the same while its fingerprint is: `datasets` takes it from the files' names, sizes and times, or from
    the hub's commit. Sources without a fingerprint are read again.
    """
    config = anchors.config
    state = SourceState(
        fingerprint=anchors.source.fingerprint,
        count=anchors.source_count,
        config=[config.path, config.split, config.on_error],
    )
    if not state.fingerprint:
        return

    known = _read_known(path)
    if known is not None and known.belongs_to(state):
        anchors.use_known_digest(known.digest)
        return

    record = KnownDigest(**state.model_dump(), digest=anchors.digest)
    with contextlib.suppress(PermissionError):  # the folder beside the set may be somebody else's
        write_file(path, json.dumps(record.model_dump()).encode())


def _read_known(path: Path) -> KnownDigest | None:
    try:
        return KnownDigest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # missing, no JSON or of another form
        return None
