"""Scores of candidates, added to a sealed set: `scores/NAME.parquet`, a row per anchor and candidate."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .durable import replacing
from .errors import InputError, WorkError
from .layout import scores_path
from .seal import add_scores_entry

if TYPE_CHECKING:
    from .reader import ShardSet

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def add_scores(root: Path, name: str, keys: Iterable[str], scores: dict[str, np.ndarray]) -> str:
    """Add scores to the sealed set at `root` and seal it anew; returns the new set ID.

    Args:
        name: of letters, digits, `-` and `_`; new.
        keys: the keys of all anchors in order.
        scores: measure → `(N, K)` float32.

    Raises:
        InputError: the name is taken or not usable.
    """
    path = scores_path(root, name)
    if not NAME.fullmatch(name):
        raise InputError(f"scores name {name!r}: expected letters, digits, - and _")
    if path.exists():
        raise InputError(f"{path} exists; scores are never changed, choose another name")
    candidates = next(iter(scores.values())).shape[1]
    all_keys = list(keys)
    columns: dict[str, pa.Array] = {
        "key": pa.array(np.repeat(np.array(all_keys, dtype=object), candidates), pa.string()),
        "candidate": pa.array(np.tile(np.arange(candidates, dtype=np.int32), len(all_keys))),
    }
    for measure, values_NK in scores.items():
        columns[measure] = pa.array(np.asarray(values_NK, np.float32).reshape(-1))
    with replacing(path) as file:
        pq.write_table(pa.table(columns), file, compression="zstd", write_statistics=False)
    return add_scores_entry(root, name)


def read_scores(path: Path, anchors: int) -> dict[str, np.ndarray]:
    """Scores as measure → `(N, K)` float32, K the candidates that were there when they were made.

    Raises:
        WorkError: not a readable table of scores for that many anchors.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise WorkError(f"{path}: not readable scores ({error})") from error
    measures = [field.name for field in table.schema if field.type == pa.float32()]
    if table.schema.names != ["key", "candidate", *measures] or not measures or table.num_rows % anchors:
        raise WorkError(f"{path}: columns {table.schema.names}, {table.num_rows} rows; expected key, candidate, scores")
    return {measure: table[measure].to_numpy().reshape(anchors, -1) for measure in measures}


def check_scores(path: Path, shards: "ShardSet") -> None:
    """Raise WorkError unless the scores at `path` fit the set: a row per anchor and candidate, in order."""
    values = read_scores(path, len(shards))
    candidates = next(iter(values.values())).shape[1]
    keys = pq.read_table(path, columns=["key"])["key"]
    own = shards.layers[0].index.column("key")
    if keys.take(pa.array(np.arange(0, len(keys), max(candidates, 1)))).to_pylist() != own.to_pylist():
        raise WorkError(f"{path}: its keys are not those of the set")
