"""Tell how fast a set is being made, from its commit records; and keep the log of the work, one JSON object a line."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ...core import json_line
from ...core.stamp import utc_now
from .commits import CommitRecord
from .plan import Plan

RECENT = 64
"""Shards that the pace is taken from: the last ones, since machines come and go."""


@dataclass(frozen=True)
class Pace:
    """Gives candidates per second of one process and of all, the seconds that are left, and those since the last shard.

    A break in the work makes neither pace slower.
    """

    per_process: float
    overall: float
    left: float
    since_last: float


def measure_pace(
    plan: Plan, finished: Sequence[CommitRecord], now: float | None = None
) -> Pace | None:
    """Return the pace of the last shards; None where no commit record says how long its shard took.

    Args:
        finished: the commit records of the layer.
        now: seconds since 1970; the present by default.
    """
    # Take the last shards by when they were finished.
    timed = []
    for record in finished:
        times = _times(record)
        if times is not None:
            seconds, end = times
            timed.append((end, seconds, record.records))

    recent = sorted(timed)[-RECENT:]
    if not recent:
        return None

    # The pace of all processes counts the time in which one at least was at work, that of one its own seconds.
    images = plan.shards.candidates * sum(count for _, _, count in recent)
    busy = _busy([(end - seconds, end) for end, seconds, _ in recent])
    overall = images / max(1.0, busy)
    worked = sum(seconds for _, seconds, _ in recent)
    per_process = images / max(1e-3, worked)

    anchors = sum(record.records for record in finished)
    left = (plan.count - anchors) * plan.shards.candidates / overall
    last_end = recent[-1][0]

    return Pace(per_process, overall, left, since_last=(now or time.time()) - last_end)


def _busy(intervals: Sequence[tuple[float, float]]) -> float:
    """Return the seconds in which one of the shards at least was in work.

    The ends are whole seconds, so a gap of up to one second is none.
    """
    total = 0.0
    reached = float("-inf")
    for start, end in sorted(intervals):
        if start - reached > 1:
            reached = start
        total += max(0.0, end - reached)
        reached = max(reached, end)

    return total


def _times(record: CommitRecord) -> tuple[float, float] | None:
    """Return the seconds that a shard took and the time of its end, or None where the record does not say."""
    seconds = record.made.get("seconds")
    finished = record.made.get("finished")
    if not isinstance(seconds, int | float) or not isinstance(finished, str):
        return None

    end = datetime.fromisoformat(finished.replace("Z", "+00:00"))
    return float(seconds), end.timestamp()


def log_path(root: Path) -> Path:
    """Return the path of the log, beside the set: a set holds nothing but what its manifest seals."""
    return root.absolute().with_name(f"{root.absolute().name}.log.jsonl")


def log_event(root: Path, event: str, **facts: Any) -> None:
    """Append a line to the log; lines of several processes never mix, since each is one write."""
    content = {"time": utc_now(), "event": event, "process": os.getpid(), **facts}
    line = json_line(content)

    path = log_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


def read_log(root: Path) -> list[dict[str, Any]]:
    """Return the events so far; a line cut short by a full disk is left out."""
    path = log_path(root)
    if not path.exists():
        return []

    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            events.append(json.loads(line))
        except ValueError:
            continue

    return events
