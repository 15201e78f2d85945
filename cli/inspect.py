"""`clsp shards status`, `info`, `preview` and `verify`: for people, without a GPU stack."""

from pathlib import Path

import click

from ..shards import (
    Anchors,
    InputError,
    ShardSet,
    committed_shards,
    contact_sheet,
    is_sealed,
    read_manifest,
    read_plan,
    verify_set,
)
from .options import PATH, set_argument
from .progress import ProgressReport, say


@click.command(epilog="Example: clsp shards status runs/digits/shards")
@set_argument
def status(root: Path) -> None:
    """How far a set is; works while it is being made."""
    plan = read_plan(root)
    finished = committed_shards(root, plan)
    anchors = sum(len(plan.shard_range(shard)) for shard in finished)
    state = "sealed" if is_sealed(root) else "unfinished"
    say(f"{root}: {state}, {len(finished)}/{plan.shard_count} shards, {anchors}/{plan.count} anchors")


@click.command(epilog="Example: clsp shards info runs/digits/shards")
@set_argument
def info(root: Path) -> None:
    """What a set is: ID, source, model, sampler."""
    manifest, plan = read_manifest(root), read_plan(root)
    source = plan.source
    rows = {
        "set ID": manifest.set_id,
        "schema": manifest.schema_version,
        "source": f"{source.name}, split {source.split}, {source.count} anchors, {source.size}x{source.size}",
        "licence": source.licence or "not stated",
        "candidates": f"{plan.shards.candidates} per anchor, {plan.shards.codec}",
        "diffusion": f"{plan.diffusion.origin} ({plan.diffusion.digest[:16]}…)",
        "sampler": ", ".join(f"{key} {value}" for key, value in sorted(plan.sampler.items())),
        "shards": f"{plan.shard_count} of {plan.shards.records} anchors",
        "bytes": f"{sum(entry.bytes for entry in manifest.files.values()):,}",
    }
    for name, value in rows.items():
        say(f"{name:<11} {value}")


@click.command(epilog="Example: clsp shards preview runs/digits/shards --out sheet.png")
@set_argument
@click.option("--out", type=PATH, required=True, help="The picture to write (.png).")
@click.option("--rows", default=16, show_default=True, type=click.IntRange(1), help="Anchors to show.")
@click.option("--seed", default=0, show_default=True, help="Which anchors are drawn.")
@click.option("--recipe", "recipe_name", default=None, help="Where the anchors come from, for a set without them.")
def preview(root: Path, out: Path, rows: int, seed: int, recipe_name: str | None) -> None:
    """A contact sheet: anchors (left) beside their candidates."""
    if out.suffix != ".png":
        raise InputError(f"--out {out}: expected a name that ends in .png")
    anchors = None
    if recipe_name:
        from .recipe import load_recipe

        anchors = Anchors(load_recipe(recipe_name).anchors)
    out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(ShardSet(root, anchors), rows, seed).save(out)
    say(f"contact sheet: {out}")


@click.command(epilog="Example: clsp shards verify runs/digits/shards --deep")
@set_argument
@click.option("--deep", is_flag=True, help="Also check every byte, every image and the index.")
@click.option("--expect", default=None, metavar="ID", help="The set ID that the seal must have.")
def verify(root: Path, deep: bool, expect: str | None) -> int:
    """Check a set against its seal; exit 1 and a line for each bad file."""
    with ProgressReport("verify", "files") as report:
        faults = verify_set(root, deep, expect, report)
    for fault in faults:
        print(f"{root}: {fault}")
    if not faults:
        say(f"{root} is sound{' (every byte and image checked)' if deep else ''}, set ID {read_manifest(root).set_id}")
    return 1 if faults else 0
