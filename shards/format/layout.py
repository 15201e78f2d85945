"""The names inside a shard set: the one place that knows them."""

import re
from pathlib import Path

PLAN = "plan.json"
MANIFEST = "manifest.json"
CARD = "README.md"
CROISSANT = "croissant.json"
DESCRIPTIONS = (CARD, CROISSANT)
"""Files that every seal writes anew."""

MAX_SHARDS = 1_000_000
"""Shard names have six digits."""

SAFE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*){0,3}")
"""Names that a manifest may hold: relative, nothing hidden, nothing that climbs out of the set."""


def layer_name(layer: int) -> str:
    """`layer-000`, `layer-001`, …"""
    return f"layer-{layer:03d}"


def shard_name(shard: int) -> str:
    """`shard-000000`, `shard-000001`, …"""
    return f"shard-{shard:06d}"


def plan_path(root: Path, layer: int) -> Path:
    """The plan of a layer: the set's own for layer 0."""
    return root / (PLAN if layer == 0 else f"{layer_name(layer)}.json")


def shard_path(root: Path, layer: int, shard: int) -> Path:
    """The tar of a shard."""
    return root / layer_name(layer) / f"{shard_name(shard)}.tar"


def commit_path(root: Path, layer: int, shard: int) -> Path:
    """The commit record of a shard."""
    return root / "commits" / layer_name(layer) / f"{shard_name(shard)}.json"


def index_path(root: Path, layer: int) -> Path:
    """The index of a layer."""
    return root / f"{layer_name(layer)}.parquet"


def scores_path(root: Path, name: str) -> Path:
    """The scores of that name."""
    return root / "scores" / f"{name}.parquet"


def parse_shard(name: str) -> tuple[int, int] | None:
    """(layer, shard) of the name of a tar, None for other files."""
    found = re.fullmatch(r"layer-(\d{3})/shard-(\d{6})\.tar", name)
    return (int(found[1]), int(found[2])) if found else None


def shard_of(name: str) -> str | None:
    """The name of the tar that a commit record belongs to, None for other files."""
    found = re.fullmatch(r"commits/(layer-\d{3}/shard-\d{6})\.json", name)
    return f"{found[1]}.tar" if found else None


def layer_files(root: Path, layer: int, shards: int) -> list[Path]:
    """Every file of a layer of that many shards: plan, index, tars and commit records."""
    paths = [plan_path(root, layer), index_path(root, layer)]
    for shard in range(shards):
        paths += [shard_path(root, layer, shard), commit_path(root, layer, shard)]
    return paths


def relative(root: Path, path: Path) -> str:
    """The name of a file in the manifest."""
    return path.relative_to(root).as_posix()


def image_fields(first: int, candidates: int, codec: str, anchors: bool) -> list[str]:
    """Member endings of a record's images in tar order: `anchor.webp`, `c000.webp`, …"""
    names = [f"c{candidate:03d}" for candidate in range(first, first + candidates)]
    return [f"{name}.{codec}" for name in (["anchor"] if anchors else []) + names]
