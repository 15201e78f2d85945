"""Name the files inside a shard set: the one place that knows their names."""

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
    """Return the name of a layer: `layer-000`, `layer-001`, …"""
    return f"layer-{layer:03d}"


def shard_name(shard: int) -> str:
    """Return the name of a shard: `shard-000000`, `shard-000001`, …"""
    return f"shard-{shard:06d}"


def plan_path(root: Path, layer: int) -> Path:
    """Return the path of a layer's plan: the set's own for layer 0."""
    return root / (PLAN if layer == 0 else f"{layer_name(layer)}.json")


def shard_path(root: Path, layer: int, shard: int) -> Path:
    """Return the path of a shard's tar."""
    return root / layer_name(layer) / f"{shard_name(shard)}.tar"


def commit_path(root: Path, layer: int, shard: int) -> Path:
    """Return the path of a shard's commit record."""
    return root / "commits" / layer_name(layer) / f"{shard_name(shard)}.json"


def index_path(root: Path, layer: int) -> Path:
    """Return the path of a layer's index."""
    return root / f"{layer_name(layer)}.parquet"


def scores_path(root: Path, name: str) -> Path:
    """Return the path of the scores of that name."""
    return root / "scores" / f"{name}.parquet"


def scores_name(file: str) -> str | None:
    """Return the name of the scores that a file of a set holds, None for other files."""
    found = re.fullmatch(r"scores/([^/]+)\.parquet", file)
    return found[1] if found else None


def parse_shard(name: str) -> tuple[int, int] | None:
    """Return the layer and the shard that the name of a tar says, None for other files."""
    found = re.fullmatch(r"layer-(\d{3})/shard-(\d{6})\.tar", name)
    return (int(found[1]), int(found[2])) if found else None


def shard_of(name: str) -> str | None:
    """Return the name of the tar that a commit record belongs to, None for other files."""
    found = re.fullmatch(r"commits/(layer-\d{3}/shard-\d{6})\.json", name)
    return f"{found[1]}.tar" if found else None


def layer_files(root: Path, layer: int, shards: int) -> list[Path]:
    """Return every file of a layer of that many shards: plan, index, tars and commit records."""
    paths = [plan_path(root, layer), index_path(root, layer)]
    for shard in range(shards):
        paths += [shard_path(root, layer, shard), commit_path(root, layer, shard)]
    return paths


def relative(root: Path, path: Path) -> str:
    """Return the name that a file has in the manifest."""
    return path.relative_to(root).as_posix()


def image_fields(first: int, candidates: int, ending: str, anchors: bool) -> list[str]:
    """Return the endings of the images of a record in tar order: `anchor.webp`, `c000.webp`, …"""
    names = ["anchor"] if anchors else []
    names += [f"c{candidate:03d}" for candidate in range(first, first + candidates)]
    return [f"{name}.{ending}" for name in names]
