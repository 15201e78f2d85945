"""Read what `run.json` records of a run, also where another version wrote it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from ..core.run_name import WITH_CANDIDATES, RunName
from .config import SyntheticConfig


def recorded_name(run: Mapping[str, Any]) -> str:
    """Return the name of a run by its record: one of an earlier version does not say so where it went by labels.

    >>> synthetic = {"scores": "probe", "measure": "agreement", "minimum": 0.5}
    >>> recorded_name({"name": "simclr+shards", "pretrain": {"synthetic": synthetic}})
    'simclr+shards+labels'
    """
    recorded = str(run.get("name", ""))
    name = RunName.parse(recorded)
    settings = run.get("pretrain", {}).get("synthetic")
    if settings is None or name.source not in WITH_CANDIDATES:
        return recorded

    try:
        synthetic = SyntheticConfig.from_record(settings)
    except ValidationError:  # of a later version, which has named it so itself
        return recorded

    return str(replace(name, by_labels=synthetic.goes_by_labels))
