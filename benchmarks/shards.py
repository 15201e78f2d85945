"""Speed of shard sets at 32x32, K = 8: reading pairs, also decoded once, writing, opening, the codecs.

    python benchmarks/shards.py --images /data/cifar10 --json shards.json

Every figure that has a target is a ratio within one run: the sides take turns, and the median over the rounds counts.
"""

import argparse
import json
import multiprocessing
import platform
import random
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset as wds
from cached import measure_cache, print_cache
from clsp.shards import BatchOrder, PairDataset, PairLoader, ShardSet, write_plan, write_shard
from clsp.shards.format.codec import encode
from codec_rates import measure_codecs, print_codecs
from made_sets import (
    BATCH,
    CANDIDATES,
    SEED,
    load_images,
    make_plan,
    make_record,
    make_set,
    verdict,
)
from opening import measure_opening, print_opening

WARM = 4
TARGETS = {"documented": 8.0, "leanest": 4.0, "decode alone": 0.85, "encode alone": 0.5}


def ours(root: Path, batches: int, workers: int) -> Iterator[Any]:
    shards = ShardSet(root)
    order = BatchOrder(shards.shard_sizes, shards.plan.digest, SEED, BATCH)
    return iter(PairLoader(PairDataset(shards, SEED), order, batches, workers=workers))


def stack_pairs(
    pairs: list[tuple[torch.Tensor, torch.Tensor]],
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.stack([anchor for anchor, _ in pairs]), torch.stack(
        [candidate for _, candidate in pairs]
    )


def pick_decoded(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    return sample["anchor.webp"], sample[f"c{random.randrange(CANDIDATES):03d}.webp"]


def documented(root: Path, batches: int, workers: int) -> Iterator[Any]:
    """Build what webdataset's documentation shows: shuffle, decode, pick, batch."""
    urls = sorted(map(str, root.glob("layer-000/*.tar")))
    dataset = (
        wds.WebDataset(urls, shardshuffle=len(urls), seed=SEED)
        .repeat()
        .shuffle(1000)
        .decode("torchrgb8")
    )
    dataset = dataset.map(pick_decoded).batched(BATCH, collation_fn=stack_pairs)
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


class Picker:
    """Lets the anchor and one candidate of each record out of the tar."""

    def __init__(self):
        self.key = ""
        self.wanted = ""

    def __call__(self, name: str) -> bool:
        """Return True for the members that are wanted."""
        key, ending = name.split(".", 1)
        if key != self.key:
            self.key = key
            self.wanted = f"c{random.randrange(CANDIDATES):03d}.webp"
        return ending == "anchor.webp" or ending == self.wanted


def fastest_decode(content: torch.Tensor) -> torch.Tensor:
    return torch.ops.image.decode_webp.default(content, 0)


def decode_picked(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    contents = [value for name, value in sample.items() if name.endswith(".webp")]
    anchor, candidate = (
        fastest_decode(torch.frombuffer(content, dtype=torch.uint8)) for content in contents
    )
    return anchor, candidate


def leanest(root: Path, batches: int, workers: int) -> Iterator[Any]:
    """Build the least that webdataset allows: other members are not even extracted, and its decoders not used."""
    urls = sorted(map(str, root.glob("layer-000/*.tar")))
    stages = [
        wds.ResampledShards(urls, seed=SEED),
        wds.tarfile_to_samples(select_files=Picker()),
        wds.shuffle(1000),
    ]
    dataset = wds.DataPipeline(
        *stages, wds.map(decode_picked), wds.batched(BATCH, collation_fn=stack_pairs)
    )
    return iter(wds.WebLoader(dataset, batch_size=None, num_workers=workers))


READERS = {"ours": (ours, 48), "documented": (documented, 6), "leanest": (leanest, 12)}
"""The pipelines and how many batches are timed, an even number: two workers deliver in step."""


def read_rate(
    reader: Callable[..., Iterator[Any]], root: Path, batches: int, workers: int
) -> float:
    """Measure the pairs per second of a pipeline that has warmed up."""
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
        contents = (
            shards.anchor_bytes(position),
            shards.candidate_bytes(position, position % CANDIDATES),
        )
        anchor, candidate = (
            torch.frombuffer(bytearray(one or b""), dtype=torch.uint8) for one in contents
        )
        pairs.append((anchor, candidate))

    return pairs


def decode_alone(pairs: list[tuple[torch.Tensor, torch.Tensor]], passes: int = 3) -> float:
    """Measure the pairs per second of the decoder alone, from memory."""
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
    """Measure the same with several processes at once, and sum it up."""
    if processes == 0:
        return decode_alone(pairs)

    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(processes)
    results = context.Queue()
    running = [
        context.Process(target=_decode_in_step, args=(pairs, barrier, results))
        for _ in range(processes)
    ]

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


def measure_writing(
    folder: Path, images_NHWC: np.ndarray, rounds: int, count: int = 512
) -> dict[str, list[float]]:
    """Measure the images per second of `write_shard`, and of `encode` alone over the same images."""
    plan = make_plan(count, count)
    records = [make_record(images_NHWC, index) for index in range(count)]
    images = [
        image for record in records for image in (record.anchor.image, *record.candidates_KHWC)
    ]
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


def ratios(found: dict[str, list[float]], own: str) -> dict[str, float]:
    """Return the median over the rounds of our rate over each other one."""
    return {
        name: statistics.median(a / b for a, b in zip(found[own], values, strict=True))
        for name, values in found.items()
        if name != own
    }


def print_rates(title: str, found: dict[str, list[float]], own: str) -> None:
    print(f"\n{title}")
    for name, values in found.items():
        median = statistics.median(values)
        line = f"  {name:14} {median:9,.0f}/s  ({min(values):,.0f} … {max(values):,.0f})"

        if name != own:
            ratio = ratios(found, own)[name]
            target = TARGETS[name]
            reached = verdict(ratio >= target)
            line += f"   {own} / {name} = {ratio:.2f}, target {target}: {reached}"

        print(line, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--images", help="a source of images that clsp reads; smooth random ones without"
    )
    parser.add_argument("--records", type=int, default=2048, help="of the set that is read")
    parser.add_argument(
        "--anchors", type=int, default=10_000_000, help="of the set that is opened; 0 leaves it out"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, help="file for the figures")

    return parser.parse_args()


PARTS = ["read", "cache", "write", "open", "codecs"]


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    images = load_images(options.images, options.records)
    found: dict[str, Any] = {
        "machine": platform.platform(),
        "torch": torch.__version__,
        "images": options.images,
    }

    if "codecs" in options.only:
        found["codecs"] = measure_codecs(images, options.rounds)
        print_codecs(found["codecs"])

    root = folder / "set"
    if {"read", "cache"} & set(options.only):
        make_set(root, make_plan(options.records, max(1, options.records // 8)), images)

    if "cache" in options.only:
        pairs = contents_of(root, 2048)
        found["cache"] = measure_cache(
            root, folder, options.rounds, lambda: decode_alone_by(2, pairs)
        )
        print_cache(found["cache"])

    if "read" in options.only:
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
