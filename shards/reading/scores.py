"""Add scores of candidates to a sealed set, and read them: `scores/NAME.parquet`, a row per anchor and candidate."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core import InputError, WorkError, canonical_json, replacing
from ..format.layout import scores_path
from ..format.manifest import read_manifest
from ..format.plan import MAX_CANDIDATES
from ..format.seal import add_scores_entry

if TYPE_CHECKING:
    from .shard_set import ShardSet

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
OTHER_CANDIDATES = "its candidates are not those of the set"


def check_name(root: Path, name: str) -> Path:
    """Return the path for new scores of that name.

    Raises:
        InputError: the name is taken or not usable.
    """
    path = scores_path(root, name)
    if not NAME.fullmatch(name):
        raise InputError(f"scores name {name!r}: expected letters, digits, - and _")

    sealed = path.relative_to(root).as_posix() in read_manifest(root).files
    if path.exists() and sealed:  # an unsealed file is what a killed writer left
        raise InputError(f"{path} exists; scores are never changed, choose another name")

    return path


def add_scores(
    root: Path,
    name: str,
    keys: Iterable[str],
    scores: dict[str, np.ndarray],
    made: Mapping[str, Any] | None = None,
) -> str:
    """Add scores to the sealed set at `root` and seal it anew; return the new set ID.

    Args:
        name: of letters, digits, `-` and `_`; new.
        keys: the keys of all anchors in order.
        scores: measure → `(N, K)` float32.
        made: what made them (encoder, digests, …), kept as JSON in the file's metadata under `clsp`.

    Raises:
        InputError: the name is taken or not usable.
    """
    path = check_name(root, name)
    candidates = next(iter(scores.values())).shape[1]
    all_keys = list(keys)
    columns: dict[str, pa.Array] = {
        "key": pa.array(np.repeat(np.array(all_keys, dtype=object), candidates), pa.string()),
        "candidate": pa.array(np.tile(np.arange(candidates, dtype=np.int32), len(all_keys))),
    }

    for measure, values_NK in scores.items():
        columns[measure] = pa.array(np.asarray(values_NK, np.float32).reshape(-1))

    metadata = {"clsp": canonical_json(dict(made))} if made else None
    table = pa.table(columns).replace_schema_metadata(metadata)
    with replacing(path) as file:
        pq.write_table(table, file, compression="zstd", write_statistics=False)

    return add_scores_entry(root, name)


def read_scores(path: Path, anchors: int) -> dict[str, np.ndarray]:
    """Read scores as measure → `(N, K)` float32, K the candidates that were there when they were made.

    Raises:
        WorkError: not a readable table of scores for that many anchors.
    """
    table = _read_table(path, anchors)
    if table.num_rows % anchors:
        raise _not_scores(path, table.schema.names, table.num_rows)

    return _by_measure(table, anchors)


def read_scores_of(shards: "ShardSet", path: Path) -> dict[str, np.ndarray]:
    """Read scores as `read_scores` does, after a look at their keys: a file may have come from another set.

    There may be scores of more candidates than the set was opened with.

    Raises:
        InputError: they are of another set.
        WorkError: not a readable table of scores.
    """
    table = _read_table(path, len(shards))
    fault = _misfit(table, shards)
    if fault:
        raise InputError(
            f"{path}: {fault}, so these are scores of another set; score {shards.root} under another name"
        )

    return _by_measure(table, len(shards))


def _by_measure(table: pa.Table, anchors: int) -> dict[str, np.ndarray]:
    scores = {}
    for measure in table.schema.names[2:]:
        scores[measure] = table[measure].to_numpy().reshape(anchors, -1)

    return scores


def _read_table(path: Path, anchors: int) -> pa.Table:
    """Read a table of scores that is no larger than a set of that many anchors can need."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            rows = file.metadata.num_rows
            measures = [field.name for field in schema if field.type == pa.float32()]
            expected = [pa.field("key", pa.string()), pa.field("candidate", pa.int32())]
            fits = list(schema)[:2] == expected and schema.names[2:] == measures != []
            if not fits or not 0 < rows <= anchors * MAX_CANDIDATES:
                raise _not_scores(path, schema.names, rows)

            table = file.read()
            table.validate(full=True)

            return table
    except (OSError, pa.ArrowException, ValueError) as error:
        raise WorkError(f"{path}: not readable scores ({error})") from error


def _not_scores(path: Path, columns: list[str], rows: int) -> WorkError:
    return WorkError(f"{path}: columns {columns}, {rows} rows; expected key, candidate, scores")


def check_scores(path: Path, shards: "ShardSet") -> None:
    """Raise WorkError unless the scores at `path` fit the set: a row per anchor and candidate, in order."""
    table = _read_table(path, len(shards))
    fault = _misfit(table, shards)
    if fault:
        raise WorkError(f"{path}: {fault}")

    if table.num_rows > len(shards) * shards.candidates:
        raise WorkError(f"{path}: {OTHER_CANDIDATES}")


def _misfit(table: pa.Table, shards: "ShardSet") -> str | None:
    """Say why rows are not those of a set's anchors and candidates, in order; None where they are."""
    candidates, rest = divmod(table.num_rows, len(shards))
    if rest:
        return f"it has {table.num_rows} rows, no multiple of the {len(shards)} anchors"

    own = shards.layers[0].index.column("key").combine_chunks()
    keys = own.take(pa.array(np.repeat(np.arange(len(shards)), candidates)))
    if not table["key"].combine_chunks().equals(keys):
        return "its keys are not those of the set"

    numbers = pa.array(np.tile(np.arange(candidates, dtype=np.int32), len(shards)))
    if not table["candidate"].combine_chunks().equals(numbers):
        return OTHER_CANDIDATES

    return None
