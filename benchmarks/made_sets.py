"""What several benchmarks need: sets of real or smooth random images, images as a folder holds them, a stop-watch."""

import io
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from clsp.core import pixel_digest
from clsp.shards import (
    Anchor,
    AnchorsConfig,
    DiffusionPlan,
    ImageSource,
    Plan,
    Record,
    ShardsConfig,
    SourcePlan,
    seal_if_complete,
    write_plan,
    write_shard,
)
from PIL import Image
from torch.utils.data import Dataset

SIZE, CANDIDATES, BATCH, SEED = 32, 8, 256, 0


def load_images(path: str | None, count: int) -> np.ndarray:
    """Return `(count, 32, 32, 3)` uint8: the first images at `path`, or smooth random ones."""
    if path:
        anchors = ImageSource(AnchorsConfig(path=path, limit=count, size=SIZE))
        return np.stack([anchor.image for anchor in anchors])

    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    smooth = [
        np.asarray(Image.fromarray(one).resize((SIZE, SIZE), Image.Resampling.BICUBIC))
        for one in coarse
    ]
    noise = generator.normal(0, 4, (count, SIZE, SIZE, 3))

    return np.clip(np.stack(smooth) + noise, 0, 255).astype(np.uint8)


def make_plan(count: int, records: int, codec: Any = "webp") -> Plan:
    return Plan(
        source=SourcePlan(
            name="benchmark",
            split="train",
            licence="none",
            count=count,
            size=SIZE,
            resize="crop",
            digest="0" * 32,
        ),
        diffusion=DiffusionPlan(origin="none", digest="0" * 64),
        sampler={},
        shards=ShardsConfig(candidates=CANDIDATES, records=records, codec=codec),
    )


def make_record(images_NHWC: np.ndarray, index: int) -> Record:
    """Return anchor `index`, and K other images in the place of its candidates."""
    image = images_NHWC[index % len(images_NHWC)]
    others = images_NHWC[(index + 1 + 37 * np.arange(CANDIDATES)) % len(images_NHWC)]
    return Record(
        Anchor(index, f"train_{index:08d}", image, index % 10, pixel_digest(image)), others
    )


def make_set(root: Path, plan: Plan, images_NHWC: np.ndarray) -> Path:
    write_plan(root, plan)
    for shard in range(plan.shard_count):
        records = (make_record(images_NHWC, index) for index in plan.shard_range(shard))
        write_shard(root, plan, 0, shard, records, dict)
    seal_if_complete(root, plan)
    return root


def verdict(reached: bool) -> str:
    return "reached" if reached else "MISSED"


class EncodedImages(Dataset[Any]):
    """Gives images as a folder holds them: decoded and transformed one at a time, as torchvision's data sets do."""

    def __init__(self, contents: Sequence[bytes], transform: Callable[[Image.Image], Any]):
        self.contents = contents
        self.transform = transform

    def __len__(self) -> int:
        return len(self.contents)

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(io.BytesIO(self.contents[index])).convert("RGB"))


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG")
    return buffer.getvalue()


def seconds(work: Callable[[], Any]) -> float:
    """Return how long it takes, what it leaves to a GPU included."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def matrix_rate(dtype: torch.dtype, device: str) -> float:
    """Measure the arithmetic per second (FLOP/s) of a large matrix product: what a network can reach at most."""
    side = 8192 if device == "cuda" else 2048
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / statistics.median(seconds(lambda: a @ b) for _ in range(10))
