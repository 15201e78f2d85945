"""Write and read the index of a layer: one row per record, one row group per shard, made from the tars alone."""

import json
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ...core import WorkError, replacing
from .layout import index_path, shard_path
from .plan import Plan

BLOCK = 512
"""The tar block: a member is a header of one block and its data padded to whole blocks."""
CACHED_SHARDS = 64
MAX_JSON_MEMBER = 1 << 20
FACTS = {"key", "index", "label", "anchor", "pixels"}


def index_schema(images: int) -> pa.Schema:
    """Return the columns of an index; `sizes` are those of a record's members in tar order, the JSON last.

    `pixels` is a list of plain binaries because pandas reads no lists of fixed-size ones.
    """
    return pa.schema(
        [
            ("key", pa.string()),
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("shard", pa.int32()),
            ("anchor", pa.binary(16)),
            ("sizes", pa.list_(pa.int32(), images + 1)),
            ("pixels", pa.list_(pa.binary(), images)),
        ]
    )


def max_member(plan: Plan) -> int:
    """Return the most bytes that a lossless image of the plan's size may have."""
    return 4 * plan.source.size**2 + (1 << 16)


def read_tar_rows(path: Path, plan: Plan, shard: int) -> list[dict[str, Any]]:
    """Read the index rows of a shard from the headers and the JSON members of its tar.

    Raises:
        WorkError: the tar does not hold exactly the records and members that the plan declares.
    """
    try:
        with path.open("rb") as tar:
            rows = [_read_row(tar, path, plan, shard) for _ in plan.shard_range(shard)]
            if tar.read(2 * tarfile.RECORDSIZE).strip(b"\0") or tar.read(1):
                raise WorkError(
                    f"{path}: more members than the plan's {len(plan.shard_range(shard))} records"
                )
    except (tarfile.TarError, OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WorkError(f"{path}: not a readable shard ({error})") from error

    return rows


def _read_row(tar: BinaryIO, path: Path, plan: Plan, shard: int) -> dict[str, Any]:
    key = ""
    sizes = []
    start = 0

    for field in [*plan.image_fields, "json"]:
        # Header by header: `tarfile.open` would follow extended headers, which `member_offsets` knows nothing of.
        member = tarfile.TarInfo.frombuf(tar.read(BLOCK), "utf-8", "strict")
        key = key or member.name.split(".")[0]
        if member.name != f"{key}.{field}":
            raise WorkError(
                f"{path}: a record has the member {member.name}, expected {key}.{field}"
            )

        limit = MAX_JSON_MEMBER if field == "json" else max_member(plan)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or not 0 <= member.size <= limit:
            raise WorkError(f"{path}: {member.name} is no plain file of at most {limit} bytes")

        start = tar.tell()
        tar.seek(start + -(-member.size // BLOCK) * BLOCK)
        sizes.append(member.size)

    end = tar.tell()
    tar.seek(start)
    facts = json.loads(tar.read(sizes[-1]))
    tar.seek(end)

    return _row(facts, key, plan, shard, sizes)


def _row(facts: Any, key: str, plan: Plan, shard: int, sizes: list[int]) -> dict[str, Any]:
    names = [field.split(".")[0] for field in plan.image_fields]
    if not isinstance(facts, dict) or set(facts) != FACTS or facts["key"] != key:
        raise ValueError(
            f"record {key}: its JSON has not exactly the fields {', '.join(sorted(FACTS))}"
        )
    if not isinstance(facts["pixels"], dict) or sorted(facts["pixels"]) != sorted(names):
        raise ValueError(f"record {key}: pixel digests of other images than {', '.join(names)}")
    if type(facts["index"]) is not int or type(facts["label"]) not in (int, type(None)):
        raise ValueError(f"record {key}: index and label are no whole numbers")

    digests = [bytes.fromhex(facts["pixels"][name]) for name in names]
    anchor = bytes.fromhex(facts["anchor"])
    if {len(digest) for digest in [anchor, *digests]} != {16}:
        raise ValueError(f"record {key}: digests are not of 16 bytes")

    return {
        "key": key,
        "index": facts["index"],
        "label": facts["label"],
        "shard": shard,
        "anchor": anchor,
        "sizes": sizes,
        "pixels": digests,
    }


def write_index(root: Path, plan: Plan, layer: int) -> None:
    """Write the layer's index durably; equal tars give equal bytes."""
    with replacing(index_path(root, layer)) as file:
        write_index_file(file, root, plan, layer)


def write_index_file(file: BinaryIO, root: Path, plan: Plan, layer: int) -> None:
    """Write the layer's index to an open file, from the tars."""
    schema = index_schema(len(plan.image_fields))
    # Statistics would make the footer, which every reader parses whole, several times larger.
    options: dict[str, Any] = {"compression": "zstd", "write_statistics": False}
    with pq.ParquetWriter(file, schema, **options) as writer:
        for shard in range(plan.shard_count):
            rows = read_tar_rows(shard_path(root, layer, shard), plan, shard)
            writer.write_table(pa.Table.from_pylist(rows, schema), row_group_size=len(rows))


@dataclass(frozen=True)
class ShardRows:
    """Holds the rows of one shard: keys, labels, and sizes and places (`offsets_NM`) of the members in the tar."""

    keys: list[str]
    indices: list[int]
    labels: list[int | None]
    sizes_NM: np.ndarray
    offsets_NM: np.ndarray


class LayerIndex:
    """Reads a layer's index, a row group (one shard) at a time.

    Raises:
        WorkError: it is not a parquet file with the declared columns and a row group of the right size per shard.
    """

    def __init__(self, path: Path, plan: Plan):
        self.path = path
        self.plan = plan
        self._schema = index_schema(len(plan.image_fields))
        self._rows: OrderedDict[int, ShardRows] = OrderedDict()
        self._table: tuple[int, list[dict[str, Any]]] = (-1, [])
        self._digests: OrderedDict[int, np.ndarray] = OrderedDict()
        self._open()

    def _open(self) -> None:
        try:
            self._file = pq.ParquetFile(self.path, memory_map=True)
            found = self._file.schema_arrow.remove_metadata()
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._damaged(f"not a readable index ({error})") from error

        if not found.equals(self._schema):
            raise self._damaged(
                f"has the columns {', '.join(found.names)} of other types or names than the plan's"
            )

        rows = self._file.metadata.num_rows
        groups = self._file.num_row_groups
        if (rows, groups) != (self.plan.count, self.plan.shard_count):
            raise self._damaged(
                f"{rows} rows in {groups} row groups, the plan has "
                f"{self.plan.count} anchors in {self.plan.shard_count} shards"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "plan": self.plan}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # another process maps the file anew

    def rows(self, shard: int) -> ShardRows:
        """Return keys, labels and the places of the members of a shard's records; the last ones used are kept."""
        if shard in self._rows:
            self._rows.move_to_end(shard)
            return self._rows[shard]

        table = self._read(shard, ["key", "index", "label", "sizes"])
        sizes_NM = _matrix(table["sizes"], len(self.plan.image_fields) + 1)
        limit = max(max_member(self.plan), MAX_JSON_MEMBER)
        if sizes_NM.min(initial=0) < 0 or sizes_NM.max(initial=0) > limit:
            raise self._damaged(f"row group {shard} has member sizes out of bounds")

        rows = ShardRows(
            keys=table["key"].to_pylist(),
            indices=table["index"].to_pylist(),
            labels=table["label"].to_pylist(),
            sizes_NM=sizes_NM,
            offsets_NM=member_offsets(sizes_NM),
        )
        self._rows[shard] = rows

        if len(self._rows) > CACHED_SHARDS:
            self._rows.popitem(last=False)

        return rows

    def pixel_digests(self, shard: int) -> np.ndarray:
        """Return the digests of the pixels of a shard's images, `(N, M)` objects of bytes; the last ones are kept."""
        if shard in self._digests:
            return self._digests[shard]

        column = self._read(shard, ["pixels"])["pixels"]
        lists = column.to_pylist()
        images = len(self.plan.image_fields)
        if any(len(digests) != images for digests in lists):
            raise self._damaged(f"row group {shard} has not {images} digests in every row")

        digests_NM = np.array(lists, dtype=object).reshape(-1, images)
        self._digests[shard] = digests_NM
        if len(self._digests) > CACHED_SHARDS:
            self._digests.popitem(last=False)

        return digests_NM

    def table(self, shard: int) -> list[dict[str, Any]]:
        """Return all columns of a shard's rows, as `read_tar_rows` gives them."""
        if self._table[0] != shard:
            self._table = (shard, self._read(shard, self._schema.names).to_pylist())
        return self._table[1]

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column of all rows."""
        try:
            table = self._file.read([name], use_threads=False)
            table.validate(full=True)
            return table[name]
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._damaged(f"column {name} cannot be read ({error})") from error

    def _read(self, shard: int, columns: list[str]) -> pa.Table:
        expected = len(self.plan.shard_range(shard))
        group = self._file.metadata.row_group(shard)
        limit = expected * (64 * len(self._schema) + 64 * len(self.plan.image_fields)) + (1 << 20)
        if group.num_rows != expected or group.total_byte_size > limit:
            raise self._damaged(f"row group {shard} has {group.num_rows} rows, the plan {expected}")

        try:
            table = self._file.read_row_group(shard, columns, use_threads=False)
            table.validate(full=True)
            if any(_has_nulls(table[name]) for name in columns if name != "label"):
                raise ValueError("it lacks values")
            return table
        except (OSError, pa.ArrowException, ValueError) as error:
            raise self._damaged(f"row group {shard} cannot be read ({error})") from error

    def _damaged(self, what: str) -> WorkError:
        return WorkError(f"{self.path}: {what}; run: clsp shards verify {self.path.parent}")


def _has_nulls(column: pa.ChunkedArray) -> bool:
    items = column.combine_chunks()
    if items.null_count:
        return True
    return pa.types.is_fixed_size_list(items.type) and items.flatten().null_count > 0


def _matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)


def member_offsets(sizes_NM: np.ndarray) -> np.ndarray:
    """Compute the place of each member's data in its tar, `(N, M)` int64, from the sizes of the tar's members alone."""
    data_blocks = -(-sizes_NM.astype(np.int64) // BLOCK)  # rounded up
    spans = BLOCK + data_blocks * BLOCK  # with the header
    ends = spans.reshape(-1).cumsum().reshape(spans.shape)
    return ends - spans + BLOCK
