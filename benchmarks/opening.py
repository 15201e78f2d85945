"""Opening a set of ten million anchors and drawing its first batch: a real index, tars where it touches."""

import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from clsp.shards import Manifest, Plan, write_plan, write_shard
from clsp.shards.format.index import index_schema, read_tar_rows
from clsp.shards.format.layout import commit_path, index_path, layer_files, relative, shard_path
from clsp.shards.format.manifest import FileEntry, Layer
from clsp.shards.reading.order import EpochOrder
from made_sets import BATCH, CANDIDATES, SEED, make_plan, make_record, verdict

OPENING = """
import json, sys, time
def memory(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024
import torch, clsp.shards
torch.set_num_threads(1)
before = memory("VmRSS")
from clsp.shards import BatchOrder, PairDataset, PairLoader, ShardSet
start = time.perf_counter()
shards = ShardSet(sys.argv[1])
opened = time.perf_counter()
order = BatchOrder(shards.shard_sizes, shards.plan.digest, 0, 256)
batch = next(iter(PairLoader(PairDataset(shards, 0), order, 1)))
done = time.perf_counter()
assert batch.candidates_BCHW.shape == (256, 3, 32, 32)
print(json.dumps({"open_s": opened - start, "first_batch_s": done - opened, "imports_bytes": before,
                  "more_bytes": memory("VmHWM") - before}))
"""


def write_large_index(root: Path, plan: Plan) -> None:
    """Write an index of the real schema: the rows of one real shard with other keys, indices and shard numbers."""
    schema = index_schema(len(plan.image_fields))
    first = pa.Table.from_pylist(read_tar_rows(shard_path(root, 0, 0), plan, 0), schema)
    with pq.ParquetWriter(
        index_path(root, 0), schema, compression="zstd", write_statistics=False
    ) as writer:
        for shard in range(plan.shard_count):
            positions = plan.shard_range(shard)
            table = first.slice(0, len(positions))
            columns = {
                "key": [f"train_{position:08d}" for position in positions],
                "index": positions,
                "shard": [shard] * len(positions),
            }

            for name, values in columns.items():
                place = schema.get_field_index(name)
                table = table.set_column(
                    place, schema.field(name), pa.array(values, schema.field(name).type)
                )

            writer.write_table(table, row_group_size=len(positions))


def make_large_set(root: Path, plan: Plan, images_NHWC: np.ndarray) -> Path:
    """Make a set whose manifest and index are complete, with the tars of the first window of shards alone."""
    # A real shard
    records = (make_record(images_NHWC, index) for index in plan.shard_range(0))
    write_plan(root, plan)
    write_shard(root, plan, 0, 0, records, dict)
    write_large_index(root, plan)

    # Its copies, in the place of the others that the first batch reads
    sizes = [len(plan.shard_range(shard)) for shard in range(plan.shard_count)]
    order = EpochOrder(sizes, plan.digest, SEED, 0)
    touched = order.positions(0, BATCH) // plan.shards.records
    for shard in sorted(set(touched.tolist()) - {0}):
        shutil.copyfile(shard_path(root, 0, 0), shard_path(root, 0, shard))

    # The seal
    tar = shard_path(root, 0, 0).stat().st_size
    commit = commit_path(root, 0, 0).stat().st_size
    sizes_of = {path: path.stat().st_size for path in (index_path(root, 0), root / "plan.json")}
    files = {}
    for path in layer_files(root, 0, plan.shard_count):
        size = sizes_of.get(path, tar if path.suffix == ".tar" else commit)
        files[relative(root, path)] = FileEntry(bytes=size, sha256="0" * 64)

    layers = [Layer(name="layer-000", first=0, candidates=CANDIDATES)]
    manifest = Manifest(plan=plan.digest, provenance={}, layers=layers, files=files)
    (root / "manifest.json").write_bytes(manifest.to_bytes())

    return root


def measure_opening(
    folder: Path, images_NHWC: np.ndarray, anchors: int, rounds: int
) -> dict[str, Any]:
    root = folder / "large"
    plan = make_plan(anchors, 1000)
    start = time.perf_counter()
    make_large_set(root, plan, images_NHWC)
    made = time.perf_counter() - start
    command = [sys.executable, "-W", "ignore", "-c", OPENING, str(root)]
    runs = [
        json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        for _ in range(rounds)
    ]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    index = index_path(root, 0).stat().st_size
    shutil.rmtree(root)

    return {
        "shards": plan.shard_count,
        "anchors": anchors,
        "made_s": made,
        "index_bytes": index,
        **medians,
    }


def print_opening(found: dict[str, Any]) -> None:
    seconds = found["open_s"] + found["first_batch_s"]
    memory = found["more_bytes"]
    print(f"\nopening {found['anchors']:,} anchors in {found['shards']:,} shards")
    print(f"  made in {found['made_s']:.0f} s, the index has {found['index_bytes'] / 1e6:,.0f} MB")
    print(
        f"  open {found['open_s']:.2f} s, first batch {found['first_batch_s']:.2f} s, target 3: {verdict(seconds < 3)}"
    )
    imports = found["imports_bytes"] / 1e6
    print(
        f"  {memory / 1e6:,.0f} MB over the {imports:,.0f} of the imports, target 1 000: {verdict(memory < 1e9)}"
    )
