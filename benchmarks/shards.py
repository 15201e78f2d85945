"""Speed of shard sets at 32x32, K = 8: reading pairs, writing, opening ten million anchors, and the codecs.

    python benchmarks/shards.py --images /data/cifar10 --json shards.json

Every figure that has a target is a ratio within one run: the sides take turns, and the median over the rounds counts.
"""

import argparse
import importlib.util
import json
import multiprocessing
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision.io
import webdataset as wds
from clsp.shards import (
    Anchor,
    Anchors,
    AnchorsConfig,
    BatchOrder,
    DiffusionPlan,
    Manifest,
    PairDataset,
    PairLoader,
    Plan,
    Record,
    ShardsConfig,
    ShardSet,
    SourcePlan,
    decode,
    encode,
    epoch_order,
    pixel_digest,
    seal_if_complete,
    write_plan,
    write_shard,
)
from clsp.shards.index import index_schema, read_tar_rows
from clsp.shards.layout import commit_path, index_path, layer_files, relative, shard_path
from clsp.shards.manifest import FileEntry, Layer
from PIL import Image

SIZE, CANDIDATES, BATCH, SEED, WARM = 32, 8, 256, 0, 4
TARGETS = {"documented": 8.0, "leanest": 4.0, "decode alone": 0.85, "encode alone": 0.8}


# ---------------------------------------------------------------------------------------------------------- the sets


def load_images(path: str | None, count: int) -> np.ndarray:
    """`(count, 32, 32, 3)` uint8: the first images at `path`, or smooth random ones."""
    if path:
        anchors = Anchors(AnchorsConfig(path=path, limit=count, size=SIZE))
        return np.stack([anchor.image for anchor in anchors])
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for one in coarse]
    noise = generator.normal(0, 4, (count, SIZE, SIZE, 3))
    return np.clip(np.stack(smooth) + noise, 0, 255).astype(np.uint8)


def make_plan(count: int, records: int, codec: Any = "webp") -> Plan:
    return Plan(
        source=SourcePlan(
            name="benchmark", split="train", licence="none", count=count, size=SIZE, resize="crop", digest="0" * 32
        ),
        diffusion=DiffusionPlan(origin="none", digest="0" * 64),
        sampler={},
        shards=ShardsConfig(candidates=CANDIDATES, records=records, codec=codec),
    )


def make_record(images_NHWC: np.ndarray, index: int) -> Record:
    """Anchor `index`, and K other images in the place of its candidates."""
    image = images_NHWC[index % len(images_NHWC)]
    others = images_NHWC[(index + 1 + 37 * np.arange(CANDIDATES)) % len(images_NHWC)]
    return Record(Anchor(index, f"train_{index:08d}", image, index % 10, pixel_digest(image)), others)


def make_set(root: Path, plan: Plan, images_NHWC: np.ndarray) -> Path:
    write_plan(root, plan)
    for shard in range(plan.shard_count):
        records = (make_record(images_NHWC, index) for index in plan.shard_range(shard))
        write_shard(root, plan, 0, shard, records, dict)
    seal_if_complete(root, plan)
    return root


def shard_sizes(plan: Plan) -> list[int]:
    return [len(plan.shard_range(shard)) for shard in range(plan.shard_count)]


# ----------------------------------------------------------------------------------------------------- reading pairs


def ours(root: Path, batches: int, workers: int) -> Iterator[Any]:
    shards = ShardSet(root)
    order = BatchOrder(shard_sizes(shards.plan), shards.plan.digest, SEED, BATCH)
    return iter(PairLoader(PairDataset(shards, SEED), order, batches, workers=workers))


def stack_pairs(pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([anchor for anchor, _ in pairs]), torch.stack([candidate for _, candidate in pairs])


def pick_decoded(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return sample["anchor.webp"], sample[f"c{random.randrange(CANDIDATES):03d}.webp"]


def documented(root: Path, batches: int, workers: int) -> Iterator[Any]:
    """As webdataset's documentation writes it: shuffle, decode, pick, batch."""
    urls = sorted(map(str, root.glob("layer-000/*.tar")))
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=SEED).repeat().shuffle(1000).decode("torchrgb8")
    dataset = dataset.map(pick_decoded).batched(BATCH, collation_fn=stack_pairs)
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


class Picker:
    """Lets the anchor and one candidate of each record out of the tar."""

    def __init__(self):
        self.key, self.wanted = "", ""

    def __call__(self, name: str) -> bool:
        """True for the members that are wanted."""
        key, ending = name.split(".", 1)
        if key != self.key:
            self.key, self.wanted = key, f"c{random.randrange(CANDIDATES):03d}.webp"
        return ending == "anchor.webp" or ending == self.wanted


def fastest_decode(content: torch.Tensor) -> torch.Tensor:
    return torch.ops.image.decode_webp.default(content, 0)


def decode_picked(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    contents = [value for name, value in sample.items() if name.endswith(".webp")]
    anchor, candidate = (fastest_decode(torch.frombuffer(content, dtype=torch.uint8)) for content in contents)
    return anchor, candidate


def leanest(root: Path, batches: int, workers: int) -> Iterator[Any]:
    """The least work that webdataset allows: other members are not even extracted, and its decoders not used."""
    urls = sorted(map(str, root.glob("layer-000/*.tar")))
    stages = [wds.ResampledShards(urls, seed=SEED), wds.tarfile_to_samples(select_files=Picker()), wds.shuffle(1000)]
    dataset = wds.DataPipeline(*stages, wds.map(decode_picked), wds.batched(BATCH, collation_fn=stack_pairs))
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


READERS = {"ours": (ours, 48), "documented": (documented, 6), "leanest": (leanest, 12)}
"""The pipelines and how many batches are timed, an even number: two workers deliver in step."""


def read_rate(reader: Callable[..., Iterator[Any]], root: Path, batches: int, workers: int) -> float:
    """Pairs per second of a pipeline that has warmed up."""
    loader = reader(root, WARM + batches, workers)
    for _ in range(WARM):
        next(loader)
    start = time.perf_counter()
    for _ in range(batches):
        next(loader)
    return batches * BATCH / (time.perf_counter() - start)


def contents_of(root: Path, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    shards = ShardSet(root)
    pairs = []
    for position in range(min(count, len(shards))):
        contents = shards.anchor_bytes(position), shards.candidate_bytes(position, position % CANDIDATES)
        anchor, candidate = (torch.frombuffer(bytearray(one or b""), dtype=torch.uint8) for one in contents)
        pairs.append((anchor, candidate))
    return pairs


def decode_alone(pairs: list[tuple[torch.Tensor, torch.Tensor]], passes: int = 3) -> float:
    """Pairs per second of the decoder alone, from memory."""
    decoder = torch.ops.image.decode_webp.default
    start = time.perf_counter()
    for _ in range(passes):
        for anchor, candidate in pairs:
            decoder(anchor, 0)
            decoder(candidate, 0)
    return passes * len(pairs) / (time.perf_counter() - start)


def _decode_in_step(pairs: Any, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    decode_alone(pairs, 1)
    barrier.wait()
    results.put(decode_alone(pairs))


def decode_alone_by(processes: int, pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """The same with several processes at once, summed."""
    if processes == 0:
        return decode_alone(pairs)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(processes), context.Queue()
    running = [context.Process(target=_decode_in_step, args=(pairs, barrier, results)) for _ in range(processes)]
    for process in running:
        process.start()
    rates = [results.get() for _ in running]
    for process in running:
        process.join()
    return sum(rates)


def measure_reading(root: Path, rounds: int, workers: int) -> dict[str, list[float]]:
    pairs = contents_of(root, 2048)
    found: dict[str, list[float]] = {name: [] for name in [*READERS, "decode alone"]}
    for _ in range(rounds):
        for name, (reader, batches) in READERS.items():
            found[name].append(read_rate(reader, root, batches, workers))
        found["decode alone"].append(decode_alone_by(workers, pairs))
    return found


# ----------------------------------------------------------------------------------------------------------- writing


def measure_writing(folder: Path, images_NHWC: np.ndarray, rounds: int, count: int = 512) -> dict[str, list[float]]:
    """Images per second: `write_shard`, and `encode` alone over the same images."""
    plan = make_plan(count, count)
    records = [make_record(images_NHWC, index) for index in range(count)]
    images = [image for record in records for image in (record.anchor.image, *record.candidates_KHWC)]
    found: dict[str, list[float]] = {"write_shard": [], "encode alone": []}
    for number in range(rounds):
        root = folder / f"written-{number}"
        write_plan(root, plan)
        start = time.perf_counter()
        write_shard(root, plan, 0, 0, records, dict)
        found["write_shard"].append(len(images) / (time.perf_counter() - start))
        start = time.perf_counter()
        for image in images:
            encode(image, "webp")
        found["encode alone"].append(len(images) / (time.perf_counter() - start))
        shutil.rmtree(root)
    return found


# ----------------------------------------------------------------------------------------------------------- opening

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
plan = shards.plan
sizes = [len(plan.shard_range(shard)) for shard in range(plan.shard_count)]
batch = next(iter(PairLoader(PairDataset(shards, 0), BatchOrder(sizes, plan.digest, 0, 256), 1)))
done = time.perf_counter()
assert batch.candidates_BCHW.shape == (256, 3, 32, 32)
print(json.dumps({"open_s": opened - start, "first_batch_s": done - opened, "imports_bytes": before,
                  "more_bytes": memory("VmHWM") - before}))
"""


def write_large_index(root: Path, plan: Plan) -> None:
    """An index of the real schema: the rows of one real shard with other keys, indices and shard numbers."""
    schema = index_schema(len(plan.image_fields))
    first = pa.Table.from_pylist(read_tar_rows(shard_path(root, 0, 0), plan, 0), schema)
    with pq.ParquetWriter(index_path(root, 0), schema, compression="zstd", write_statistics=False) as writer:
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
                table = table.set_column(place, schema.field(name), pa.array(values, schema.field(name).type))
            writer.write_table(table, row_group_size=len(positions))


def make_large_set(root: Path, plan: Plan, images_NHWC: np.ndarray) -> Path:
    """A set whose manifest and index are complete and whose tars are there for the first window of shards alone."""
    records = (make_record(images_NHWC, index) for index in plan.shard_range(0))
    write_plan(root, plan)
    write_shard(root, plan, 0, 0, records, dict)
    write_large_index(root, plan)
    touched = epoch_order(shard_sizes(plan), plan.digest, SEED, 0)[:BATCH] // plan.shards.records
    for shard in sorted(set(touched.tolist()) - {0}):
        shutil.copyfile(shard_path(root, 0, 0), shard_path(root, 0, shard))
    sizes = {index_path(root, 0): index_path(root, 0).stat().st_size, root / "plan.json": len(plan.to_bytes())}
    tar, commit = (path(root, *arguments).stat().st_size for path, arguments in _first_files(plan))
    files = {}
    for path in layer_files(root, 0, plan.shard_count):
        size = sizes.get(path, tar if path.suffix == ".tar" else commit)
        files[relative(root, path)] = FileEntry(bytes=size, sha256="0" * 64)
    layers = [Layer(name="layer-000", first=0, candidates=CANDIDATES)]
    manifest = Manifest(plan=plan.digest, provenance={}, layers=layers, files=files)
    (root / "manifest.json").write_bytes(manifest.to_bytes())
    return root


def _first_files(plan: Plan) -> list[tuple[Callable[..., Path], tuple[Any, ...]]]:
    return [(shard_path, (0, 0)), (commit_path, (plan, 0, 0)[1:])]


def measure_opening(folder: Path, images_NHWC: np.ndarray, anchors: int, rounds: int) -> dict[str, Any]:
    root, plan = folder / "large", make_plan(anchors, 1000)
    start = time.perf_counter()
    make_large_set(root, plan, images_NHWC)
    made = time.perf_counter() - start
    command = [sys.executable, "-W", "ignore", "-c", OPENING, str(root)]
    runs = [json.loads(subprocess.run(command, check=True, capture_output=True).stdout) for _ in range(rounds)]
    medians = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    index = index_path(root, 0).stat().st_size
    shutil.rmtree(root)
    return {"shards": plan.shard_count, "anchors": anchors, "made_s": made, "index_bytes": index, **medians}


# ------------------------------------------------------------------------------------------------------------ codecs


def decoders(codec: str) -> dict[str, Callable[[bytes], Any]]:
    """Decoders at hand from bytes to an image, by name."""
    if codec == "raw":
        return {"NumPy": lambda content: np.frombuffer(content, np.uint8).reshape(SIZE, SIZE, 3).copy()}
    public: Any = {"webp": torchvision.io.decode_webp, "png": torchvision.io.decode_png}[codec]
    operator: Any = {"webp": torch.ops.image.decode_webp.default, "png": torch.ops.image.decode_png.default}[codec]
    found: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda content: decode(content, codec, SIZE),
        "torchvision": lambda content: public(torch.frombuffer(content, dtype=torch.uint8)),
        "torch.ops": lambda content: operator(torch.frombuffer(content, dtype=torch.uint8), 0),
    }
    if importlib.util.find_spec("cv2"):
        import cv2

        found["OpenCV"] = lambda content: cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return found


def rate(function: Callable[[Any], Any], values: list[Any]) -> float:
    start = time.perf_counter()
    for value in values:
        function(value)
    return len(values) / (time.perf_counter() - start)


def measure_codecs(images_NHWC: np.ndarray, rounds: int) -> dict[str, dict[str, Any]]:
    found = {}
    images = list(images_NHWC[:1024])
    facts = len(json.dumps(dict.fromkeys(("anchor", *map(str, range(CANDIDATES))), "0" * 32), indent=2)) + 200
    for codec in ("webp", "png", "raw"):
        coder = bytes_of if codec == "raw" else lambda image, codec=codec: encode(image, codec)
        contents = [coder(image) for image in images]
        member = statistics.mean(512 + -(-len(content) // 512) * 512 for content in contents)
        rates = {name: [] for name in decoders(codec)}
        encoding = []
        for _ in range(rounds):
            encoding.append(rate(coder, images))
            for name, decoder in decoders(codec).items():
                rates[name].append(rate(decoder, contents))
        found[codec] = {
            "bytes": statistics.mean(map(len, contents)),
            "tar_bytes_per_record": (1 + CANDIDATES) * member + 512 + -(-facts // 512) * 512,
            "encode_per_s": statistics.median(encoding),
            "decode_per_s": {name: statistics.median(values) for name, values in rates.items()},
        }
    return found


def bytes_of(image_HWC: np.ndarray) -> bytes:
    return image_HWC.tobytes()


# ------------------------------------------------------------------------------------------------------------ report


def ratios(found: dict[str, list[float]], own: str) -> dict[str, float]:
    """The median over the rounds of our rate over each other one."""
    return {
        name: statistics.median(a / b for a, b in zip(found[own], values, strict=True))
        for name, values in found.items()
        if name != own
    }


def print_rates(title: str, found: dict[str, list[float]], own: str) -> None:
    print(f"\n{title}")
    for name, values in found.items():
        line = f"  {name:14} {statistics.median(values):9,.0f}/s  ({min(values):,.0f} … {max(values):,.0f})"
        if name != own:
            ratio = ratios(found, own)[name]
            line += f"   {own} / {name} = {ratio:.2f}, target {TARGETS[name]}: {verdict(ratio >= TARGETS[name])}"
        print(line, flush=True)


def verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


def print_opening(found: dict[str, Any]) -> None:
    seconds, memory = found["open_s"] + found["first_batch_s"], found["more_bytes"]
    print(f"\nopening {found['anchors']:,} anchors in {found['shards']:,} shards")
    print(f"  made in {found['made_s']:.0f} s, the index has {found['index_bytes'] / 1e6:,.0f} MB")
    print(
        f"  open {found['open_s']:.2f} s, first batch {found['first_batch_s']:.2f} s, target 3: {verdict(seconds < 3)}"
    )
    imports = found["imports_bytes"] / 1e6
    print(f"  {memory / 1e6:,.0f} MB over the {imports:,.0f} of the imports, target 1 000: {verdict(memory < 1e9)}")


def print_codecs(found: dict[str, dict[str, Any]]) -> None:
    print("\ncodec  bytes/image  tar bytes/record  encode/s  decode/s")
    for codec, row in found.items():
        rates = ", ".join(f"{name} {value:,.0f}" for name, value in row["decode_per_s"].items())
        tar, encoding = row["tar_bytes_per_record"], row["encode_per_s"]
        print(f"{codec:5}  {row['bytes']:11,.0f}  {tar:16,.0f}  {encoding:8,.0f}  {rates}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="a source of images that clsp reads; smooth random ones without")
    parser.add_argument("--records", type=int, default=2048, help="of the set that is read")
    parser.add_argument("--anchors", type=int, default=10_000_000, help="of the set that is opened; 0 leaves it out")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="file for the figures")
    return parser.parse_args()


PARTS = ["read", "write", "open", "codecs"]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    images = load_images(options.images, options.records)
    found: dict[str, Any] = {"machine": platform.platform(), "torch": torch.__version__, "images": options.images}
    if "codecs" in options.only:
        found["codecs"] = measure_codecs(images, options.rounds)
        print_codecs(found["codecs"])
    if "read" in options.only:
        root = make_set(folder / "set", make_plan(options.records, max(1, options.records // 8)), images)
        for workers in (0, 2):
            name = f"pairs per second, {workers} workers"
            rates = found[name] = measure_reading(root, options.rounds, workers)
            print_rates(name, rates, "ours")
    if "write" in options.only:
        found["writing"] = measure_writing(folder, images, options.rounds)
        print_rates("images written per second, one thread", found["writing"], "write_shard")
    if "open" in options.only and options.anchors:
        found["opening"] = measure_opening(folder, images, options.anchors, min(3, options.rounds))
        print_opening(found["opening"])
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    options = parse_arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
