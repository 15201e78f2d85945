"""Read and write commit records: a shard without a valid one does not exist."""

from pathlib import Path

from pydantic import JsonValue, ValidationError

from ...core import InputError, canonical_json, write_file
from .layout import commit_path, layer_name, shard_path
from .metadata import Frozen, read_json
from .plan import Plan


class CommitRecord(Frozen):
    """Says what a finished shard holds (`records`, `bytes`, `sha256`) and gives the facts of the run that made it."""

    plan: str
    layer: str
    shard: int
    records: int
    bytes: int
    sha256: str
    made: dict[str, JsonValue]


def write_commit(root: Path, layer: int, record: CommitRecord) -> None:
    """Write the commit record durably; the shard exists from then on."""
    write_file(
        commit_path(root, layer, record.shard), canonical_json(record.model_dump(mode="json"))
    )


def read_commit(root: Path, plan: Plan, layer: int, shard: int) -> CommitRecord | None:
    """Return the commit record of a shard, or None where none parses and fits the plan and the tar's size."""
    try:
        record = CommitRecord.model_validate(read_json(commit_path(root, layer, shard)))
        size = shard_path(root, layer, shard).stat().st_size
    except (InputError, ValidationError, OSError):
        return None

    expected = (plan.digest, layer_name(layer), shard, len(plan.shard_range(shard)), size)
    found = (record.plan, record.layer, record.shard, record.records, record.bytes)
    return record if found == expected else None


def commit_records(root: Path, plan: Plan, layer: int = 0) -> list[CommitRecord]:
    """Return the commit records of the finished shards, in order."""
    records = []
    for shard in range(plan.shard_count):
        record = read_commit(root, plan, layer, shard)
        if record is not None:
            records.append(record)

    return records


def committed_shards(root: Path, plan: Plan, layer: int = 0) -> set[int]:
    """Return the numbers of the finished shards."""
    return {record.shard for record in commit_records(root, plan, layer)}
