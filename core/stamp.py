"""Collect the facts that every run records: versions and time."""

import time
from importlib.metadata import version
from typing import Any


def run_stamp(*packages: str) -> dict[str, Any]:
    """Return the facts that every run records: the versions of these packages, and the time (UTC)."""
    return {
        "versions": {name: version(name) for name in packages},
        "finished": utc_now(),
    }


def utc_now() -> str:
    """Return the time, to the second, as every record and log line has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
