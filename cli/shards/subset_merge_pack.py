"""`clsp shards subset`, `merge` and `pack`: new sets out of existing ones."""

from pathlib import Path

import click

from ...core import InputError
from ...shards import ShardSet, merge_sets, pack_set, subset_set
from ...shards.editing.derive import fraction_positions, range_positions
from ..options import PATH, out_option, set_argument
from ..progress import ProgressReport, say, say_unfinished

new_set = out_option("Folder of the new set; the same command goes on where it stopped.")


@click.command(
    epilog="Example: clsp shards subset runs/digits/shards --fraction 0.1 --out runs/digits/tenth"
)
@set_argument
@click.option(
    "--fraction",
    default=None,
    type=click.FloatRange(0, 1, min_open=True),
    help="A random share of the anchors; smaller shares are parts of larger ones.",
)
@click.option(
    "--range", "index_range", default=None, metavar="A:B", help="Anchors with source index A … B-1."
)
@new_set
def subset(root: Path, fraction: float | None, index_range: str | None, out: Path) -> None:
    """Make a new set with some of the anchors and all their candidates."""
    if (fraction is None) == (index_range is None):
        given = "neither" if fraction is None else "both"
        raise InputError(f"{given} of --fraction F and --range A:B given; expected exactly one")

    # Choose the anchors
    parent = ShardSet(root)
    if fraction is not None:
        positions = fraction_positions(parent, fraction)
        settings = {"fraction": fraction}
    else:
        first, _, stop = str(index_range).partition(":")
        if not (first.isdecimal() and stop.isdecimal() and int(first) < int(stop)):
            raise InputError(
                f"--range {index_range}: expected A:B with 0 <= A < B, for example 0:1000"
            )
        positions = range_positions(parent, int(first), int(stop))
        settings = {"range": [int(first), int(stop)]}

    # Make the set
    with ProgressReport("subset", "anchors") as report:
        set_id = subset_set(parent, out, positions, settings, report)

    say_unfinished(root, parent.manifest)
    say(f"shard set {out} has {len(positions)} of {len(parent)} anchors, set ID {set_id}")


@click.command(epilog="Example: clsp shards merge runs/a/shards runs/b/shards --out runs/both")
@click.argument("one", metavar="A", type=PATH)
@click.argument("other", metavar="B", type=PATH)
@new_set
def merge(one: Path, other: Path, out: Path) -> None:
    """Merge two sets into one: more candidates for the same anchors, or disjoint anchors of one source."""
    parents = (ShardSet(one), ShardSet(other))
    with ProgressReport("merge", "anchors") as report:
        set_id = merge_sets(*parents, out, report)
    for parent in parents:
        say_unfinished(parent.root, parent.manifest)
    say(f"shard set {out} is sealed, set ID {set_id}")


@click.command(epilog="Example: clsp shards pack runs/digits/shards --out runs/digits/packed")
@set_argument
@new_set
def pack(root: Path, out: Path) -> None:
    """Make a new set with all layers in one."""
    parent = ShardSet(root)
    with ProgressReport("pack", "anchors") as report:
        set_id = pack_set(parent, out, report)
    say_unfinished(root, parent.manifest)
    say(f"shard set {out} is sealed, set ID {set_id}")
