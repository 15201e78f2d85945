"""The index of a layer: one row per record, one row group per shard, made from the tars alone."""

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .durable import replacing
from .errors import WorkError
from .layout import index_path, shard_path
from .plan import Plan

BLOCK = 512
"""The tar block: a member is a header of one block and its data padded to whole blocks."""


def index_schema(images: int) -> pa.Schema:
    """`sizes` are the bytes of a record's members in tar order (`images` images, then the JSON)."""
    return pa.schema(
        [
            ("key", pa.string()),
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("shard", pa.int32()),
            ("anchor", pa.binary(16)),
            ("sizes", pa.list_(pa.int32(), images + 1)),
            ("pixels", pa.list_(pa.binary(16), images)),
        ]
    )


def read_tar_rows(path: Path, plan: Plan, shard: int) -> list[dict[str, object]]:
    """The index rows of a shard, read from the headers and the JSON members of its tar.

    Raises:
        WorkError: the tar does not hold exactly the records and members that the plan declares.
    """
    fields = [*plan.image_fields, "json"]
    rows = []
    try:
        with tarfile.open(path, "r:") as tar:
            for index in plan.shard_range(shard):
                members = [tar.next() for _ in fields]
                names = [member.name if member else "nothing" for member in members]
                key = names[0].split(".")[0]
                if names != [f"{key}.{field}" for field in fields]:
                    raise WorkError(f"{path}: record {index} has the members {names}, expected {fields}")
                json_member = members[-1]
                assert json_member is not None
                stream = tar.extractfile(json_member)
                assert stream is not None
                rows.append(_row(json.loads(stream.read()), shard, [m.size for m in members if m]))
            if tar.next() is not None:
                raise WorkError(f"{path}: more members than the plan's {len(plan.shard_range(shard))} records")
    except (tarfile.TarError, ValueError, KeyError, EOFError) as error:
        raise WorkError(f"{path}: not a readable shard ({error})") from error
    return rows


def _row(facts: dict[str, object], shard: int, sizes: list[int]) -> dict[str, object]:
    pixels = facts["pixels"]
    assert isinstance(pixels, dict)
    return {
        "key": facts["key"],
        "index": facts["index"],
        "label": facts["label"],
        "shard": shard,
        "anchor": bytes.fromhex(str(facts["anchor"])),
        "sizes": sizes,
        "pixels": [bytes.fromhex(digest) for digest in pixels.values()],
    }


def write_index(root: Path, plan: Plan, layer: int) -> None:
    """Write the layer's index durably; equal tars give equal bytes."""
    schema = index_schema(len(plan.image_fields))
    with replacing(index_path(root, layer)) as file, pq.ParquetWriter(file, schema, compression="zstd") as writer:
        for shard in range(plan.shard_count):
            rows = read_tar_rows(shard_path(root, layer, shard), plan, shard)
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))


@dataclass(frozen=True)
class LayerIndex:
    """The columns of a layer's index as arrays; `offsets` `(N, M+1)` are where a record's members start in its tar."""

    keys: pa.ChunkedArray
    indices: np.ndarray
    labels: pa.ChunkedArray
    shards: np.ndarray
    anchors: pa.ChunkedArray
    sizes: np.ndarray
    offsets: np.ndarray
    pixels: pa.ChunkedArray


def read_index(path: Path, plan: Plan) -> LayerIndex:
    """Read a layer's index.

    Raises:
        WorkError: it is not a parquet file with the declared columns and one row per anchor.
    """
    members = len(plan.image_fields) + 1
    try:
        table = pq.read_table(path, schema=index_schema(members - 1))
    except (OSError, pa.ArrowException) as error:
        raise WorkError(f"{path}: not a readable index ({error}); run: clsp shards verify {path.parent}") from error
    if table.num_rows != plan.count:
        raise WorkError(f"{path}: {table.num_rows} rows, the plan has {plan.count} anchors")
    sizes = table["sizes"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, members)
    shards = table["shard"].to_numpy()
    return LayerIndex(
        keys=table["key"],
        indices=table["index"].to_numpy(),
        labels=table["label"],
        shards=shards,
        anchors=table["anchor"],
        sizes=sizes,
        offsets=member_offsets(sizes, shards),
        pixels=table["pixels"],
    )


def member_offsets(sizes_NM: np.ndarray, shards_N: np.ndarray) -> np.ndarray:
    """Where the data of each member starts in its tar, `(N, M)` int64, from the members' sizes alone."""
    spans = BLOCK + -(-sizes_NM.astype(np.int64) // BLOCK) * BLOCK
    ends = spans.reshape(-1).cumsum().reshape(spans.shape)
    starts = ends - spans
    first_row = np.searchsorted(shards_N, shards_N, side="left")
    return starts - starts[first_row, :1] + BLOCK
