"""`clsp shards status`, `info`, `preview` and `verify`: for people, without a GPU stack."""

from datetime import timedelta
from pathlib import Path

import click

from ...core import InputError, replacing
from ...shards import (
    Plan,
    ShardSet,
    contact_sheet,
    read_manifest,
    read_scores,
    verify_set,
)
from ...shards.format.commits import commit_records
from ...shards.format.event_log import Pace, measure_pace, read_log
from ...shards.format.layout import layer_name, plan_path, scores_path
from ...shards.format.manifest import is_sealed
from ...shards.format.plan import read_plan
from ...shards.reading.contact_sheet import with_histograms
from ...shards.reading.thumbnails import LARGEST
from ..options import PATH, set_argument
from ..progress import ProgressReport, open_anchors, say, say_unfinished


@click.command(epilog="Example: clsp shards status runs/digits/shards")
@set_argument
def status(root: Path) -> None:
    """Show how much of a set is made, and how fast; works while it is being made."""
    # Layer by layer
    sealed = len(read_manifest(root).layers) if is_sealed(root) else 0
    layer = 0
    while layer == 0 or plan_path(root, layer).exists():
        plan = read_plan(root, layer)
        finished = commit_records(root, plan, layer)
        anchors = sum(record.records for record in finished)
        state = "sealed" if layer < sealed else "unfinished"
        say(
            f"{root}: {layer_name(layer)} {state}, candidates {plan.start}-{plan.end - 1}, "
            f"{len(finished)}/{plan.shard_count} shards, {anchors}/{plan.count} anchors"
        )

        if state == "unfinished":
            _say_pace(measure_pace(plan, finished))

        layer += 1

    # Failures that the log tells of
    failures = [event for event in read_log(root) if event.get("event") == "failed"]
    if failures:
        say(
            f"failures    {len(failures)}, the last one {failures[-1]['time']}: {failures[-1]['message']}"
        )


def _say_pace(pace: Pace | None) -> None:
    if pace:
        say(
            f"pace        {pace.per_process:.3g} candidates/s per process, {pace.overall:.3g}/s in all"
        )
        say(
            f"left        {timedelta(seconds=round(pace.left))} at this pace; last shard {pace.since_last:.0f} s ago"
        )


@click.command(epilog="Example: clsp shards info runs/digits/shards")
@set_argument
def info(root: Path) -> None:
    """Describe a set: ID, source, model, sampler."""
    manifest = read_manifest(root)
    plan = read_plan(root)
    source = plan.source
    rows = {
        "set ID": manifest.set_id,
        "schema": manifest.schema_version,
        "source": f"{source.name}, split {source.split}, {source.count} anchors, {source.size}x{source.size}",
        "anchors": f"{plan.count}{'' if plan.shards.include_anchors else ' (not included, joined from the source)'}",
        **source.facts,
        "licence": source.licence or "not stated",
        "candidates": f"{manifest.candidates} per anchor, {plan.codec.text}",
        **{
            layer.name: _layer(read_plan(root, number))
            for number, layer in enumerate(manifest.layers)
        },
        "scores": ", ".join(
            Path(name).stem for name in manifest.files if name.startswith("scores/")
        )
        or "none",
        "shards": f"{plan.shard_count} of {plan.shards.records} anchors",
        "bytes": f"{sum(entry.bytes for entry in manifest.files.values()):,}",
    }

    for name, value in rows.items():
        say(f"{name:<11} {value}")


def _layer(plan: Plan) -> str:
    made = (
        f", by {plan.derived.operation} of {len(plan.derived.parents)} sets" if plan.derived else ""
    )
    origin = f"{plan.diffusion.origin} ({plan.diffusion.digest[:16]}…){plan.diffusion.text}"
    return f"candidates {plan.start}-{plan.end - 1}, {origin}, {plan.sampler_text}{made}"


@click.command(epilog="Example: clsp shards preview runs/digits/shards --out sheet.png")
@set_argument
@click.option("--out", type=PATH, required=True, help="The picture to write (.png).")
@click.option(
    "--rows", default=16, show_default=True, type=click.IntRange(1), help="Anchors to show."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the choice of anchors.")
@click.option(
    "--largest",
    default=LARGEST,
    show_default=True,
    type=click.IntRange(16, 1024),
    metavar="PIXELS",
    help="Side of an image in the picture; larger ones are scaled down to it.",
)
@click.option(
    "--recipe",
    "recipe_name",
    default=None,
    metavar="NAME|FILE",
    help="Recipe that says where the anchors come from, for a set without them.",
)
def preview(
    root: Path, out: Path, rows: int, seed: int, largest: int, recipe_name: str | None
) -> None:
    """Draw a contact sheet: anchors (left) beside their candidates; below, a histogram of every score."""
    if out.suffix != ".png":
        raise InputError(f"--out {out}: expected a name that ends in .png")

    anchors = None
    if recipe_name:
        from ..recipe import load_recipe

        anchors = open_anchors(load_recipe(recipe_name).anchors)

    # Anchors beside their candidates
    shards = ShardSet(root, anchors)
    sheet = contact_sheet(shards, rows, seed, largest)

    # Histograms of the scores below
    names = [Path(name).stem for name in shards.manifest.files if name.startswith("scores/")]
    if names:
        scores = {name: read_scores(scores_path(root, name), len(shards)) for name in names}
        sheet = with_histograms(sheet, scores)

    with replacing(out) as file:
        sheet.save(file, format="png")

    say(f"contact sheet: {out}")


@click.command(epilog="Example: clsp shards verify runs/digits/shards --deep")
@set_argument
@click.option("--deep", is_flag=True, help="Also check every byte, every image and the index.")
@click.option("--expect", default=None, metavar="ID", help="The set ID that the seal must have.")
def verify(root: Path, deep: bool, expect: str | None) -> int:
    """Check a set against its seal: a line for each bad file, and exit code 1 if there is any."""
    with ProgressReport("verify", "files") as report:
        faults = verify_set(root, deep, expect, report)

    for fault in faults:
        print(f"{root}: {fault}")

    if not faults:
        manifest = read_manifest(root)
        say_unfinished(root, manifest)
        say(
            f"{root} is sound{' (every byte and image checked)' if deep else ''}, set ID {manifest.set_id}"
        )

    return 1 if faults else 0
