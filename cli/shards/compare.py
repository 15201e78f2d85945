"""Compare two sets: `clsp shards compare` tells if a faster sampler makes candidates as good as another one's."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...core import canonical_json, run_stamp, write_file
from ...shards import ShardSet
from ..options import PATH, encoder_option
from ..progress import ProgressReport, say

if TYPE_CHECKING:
    from ...evaluate import MeasureRow

EXAMPLE = "Example: clsp shards compare runs/paper/shards runs/fast/shards --encoder runs/digits/pretrain/simclr-s0"


@click.command(epilog=EXAMPLE)
@click.argument("reference", metavar="REFERENCE", type=PATH)
@click.argument("other", metavar="SET", type=PATH)
@encoder_option
@click.option(
    "--resamples",
    default=1000,
    show_default=True,
    type=click.IntRange(100),
    help="Resamples of the bootstrap.",
)
@click.option("--out", type=PATH, help="JSON file for the figures.")
def compare(
    reference: Path, other: Path, encoder_name: str, resamples: int, out: Path | None
) -> int:
    """Tell whether a set's candidates are as good as another's of the same anchors; exit code 1 if that is not shown.

    The 95 % bootstrap interval of the paired difference has to lie above -1 point of label agreement and below +5 % of
    the Fréchet distance. Hardness, diversity and kernel distance are shown beside them.
    """
    reference_set = ShardSet(reference)
    other_set = ShardSet(other)
    from ...evaluate import PACKAGES, compare_quality, encoder_digest, load_encoder

    encoder = load_encoder(encoder_name)
    with ProgressReport("compare", "anchors") as report:
        found = compare_quality(reference_set, other_set, encoder, resamples, report)

    # Say what was found
    anchors = f"{found.anchors} anchors in pairs"
    say(f"{'':20} {'reference':>11} {'set':>11} {'difference':>11}   95 % interval, {anchors}")
    for name, row in found.measures.items():
        say(_line(name, row))

    if found.labelled_anchors not in (None, found.anchors):
        say(f"label agreement is of the {found.labelled_anchors} anchors that have a label")

    one, _ = found.kernel_distance.reference
    two, deviation = found.kernel_distance.other
    figures = f"{one:11.4g} {two:11.4g} {two - one:+11.4g}"
    say(f"{'kernel distance':20} {figures}   std over subsets {deviation:.2g}")
    say("equivalent" if found.equivalent else "equivalence is not shown")

    # Write it
    if out:
        content = {
            "task": "equivalence",
            "reference": reference_set.identity,
            "set": other_set.identity,
            "encoder": encoder_digest(encoder_name),
            **run_stamp(*PACKAGES),
            "result": found.model_dump(),
        }
        write_file(out, canonical_json(content))

    return 0 if found.equivalent else 1


def _line(name: str, row: "MeasureRow") -> str:
    low, high = row.interval
    unit = " %" if name == "frechet distance" else ""
    values = f"{row.reference:11.4g} {row.other:11.4g} {row.difference:+11.4f}"
    interval = f"[{low:+.4f}, {high:+.4f}]{unit}"
    line = f"{name:20} {values}   {interval}"
    if row.margin is None:
        return line

    verdict = "within" if row.within else "NOT within"
    return f"{line}, margin {row.margin:+g}: {verdict}"
