"""Keep what a source was found to be beside what is made of it: reading a million images takes minutes."""

import contextlib
import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ...core import Report, write_file
from .images import ImageSource
from .survey import Findings


class SourceState(BaseModel):
    """Gives the facts by which a source is recognised as unchanged."""

    model_config = ConfigDict(frozen=True)

    fingerprint: str
    count: int
    config: list[str]


class KnownFindings(SourceState):
    """Holds what was found in a source, as it is kept in a file, with the state of the source that it belongs to."""

    findings: Findings

    def belongs_to(self, state: SourceState) -> bool:
        """Return True if it was found in a source in this state."""
        mine = (self.fingerprint, self.count, self.config)
        return mine == (state.fingerprint, state.count, state.config)


def remember_digest(anchors: ImageSource, path: Path, report: Report | None = None) -> None:
    """Give the anchors what was found earlier, from the file at `path`, if it is of this very source; else look.

    A source is the same while its fingerprint is: of files, their names, sizes and times, of the hub, the commit.
    Sources without a fingerprint are read again.

    Args:
        report: called with (images looked at, images).
    """
    config = anchors.config
    state = SourceState(
        fingerprint=anchors.source.fingerprint,
        count=anchors.source_count,
        config=[config.path, config.split, config.on_error, str(config.bits), str(config.range)],
    )
    if not state.fingerprint:
        return

    known = _read_known(path)
    if known is not None and known.belongs_to(state):
        anchors.use_known_findings(known.findings)
        return

    findings = anchors.known_findings or anchors.look(report=report)
    record = KnownFindings(**state.model_dump(), findings=findings)
    with contextlib.suppress(PermissionError):  # the folder beside the set may be somebody else's
        write_file(path, json.dumps(record.model_dump(mode="json")).encode())


def _read_known(path: Path) -> KnownFindings | None:
    try:
        return KnownFindings.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):  # missing, no JSON or of another form
        return None
