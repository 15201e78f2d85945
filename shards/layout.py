"""The names inside a shard set: the one place that knows them."""

from pathlib import Path

PLAN = "plan.json"
MANIFEST = "manifest.json"
CARD = "README.md"


def layer_name(layer: int) -> str:
    """`layer-000`, `layer-001`, …"""
    return f"layer-{layer:03d}"


def shard_name(shard: int) -> str:
    """`shard-000000`, `shard-000001`, …"""
    return f"shard-{shard:06d}"


def shard_path(root: Path, layer: int, shard: int) -> Path:
    """The tar of a shard."""
    return root / layer_name(layer) / f"{shard_name(shard)}.tar"


def commit_path(root: Path, layer: int, shard: int) -> Path:
    """The commit record of a shard."""
    return root / "commits" / layer_name(layer) / f"{shard_name(shard)}.json"


def index_path(root: Path, layer: int) -> Path:
    """The index of a layer."""
    return root / f"{layer_name(layer)}.parquet"


def image_fields(first: int, candidates: int, codec: str, anchors: bool) -> list[str]:
    """Member endings of a record's images in tar order: `anchor.webp`, `c000.webp`, …"""
    names = [f"c{candidate:03d}" for candidate in range(first, first + candidates)]
    return [f"{name}.{codec}" for name in (["anchor"] if anchors else []) + names]
