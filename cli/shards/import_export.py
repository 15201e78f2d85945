"""`clsp shards import-npy` and `export`: candidates as arrays and folders of images, without a GPU stack."""

from pathlib import Path

import click

from ...core import InputError, remove_temporaries
from ...shards import ShardSet, write_plan
from ...shards.format.plan import check_plan
from ..options import PATH, check_option, out_option, recipe_options, set_argument
from ..progress import ProgressReport, open_anchors, say, say_unfinished
from .plan_make import records_text, refuse_enlarged


@click.command(
    "import-npy",
    epilog="Example: clsp shards import-npy cifar10.npy --recipe cifar10 --out runs/set",
)
@click.argument("path", metavar="FILE", type=PATH)
@recipe_options
@out_option("Folder of the set; new, or one of the same file, which goes on where it stopped.")
@check_option
def import_npy(
    path: Path, recipe_name: str, overrides: tuple[str, ...], out: Path, check: bool
) -> None:
    """Import candidates made elsewhere as a shard set: (N, K, H, W, 3) uint8 in the order of the recipe's anchors."""
    from ...shards.editing.import_npy import import_npy, import_plan, open_npy
    from ..recipe import load_recipe

    recipe = load_recipe(recipe_name, overrides)
    anchors = open_anchors(recipe.anchors)
    array_NKHWC = open_npy(path, anchors)
    refuse_enlarged(anchors)
    plan = import_plan(path, array_NKHWC, anchors, recipe.shards)
    check_plan(out, plan)
    if recipe.shards.megabytes:
        say(f"shards: {plan.shard_count} of {records_text(plan, recipe.shards)}")
    if check:
        return

    write_plan(out, plan)
    remove_temporaries(out)
    with ProgressReport("import", "anchors") as report:
        set_id = import_npy(out, plan, anchors, array_NKHWC, report)

    say(f"shard set {out} is sealed, set ID {set_id}")


@click.command(epilog="Example: clsp shards export runs/digits/shards --npy candidates.npy")
@set_argument
@click.option(
    "--npy",
    type=PATH,
    default=None,
    help="New file for the candidates as one array (N, K, H, W, 3) uint8.",
)
@click.option(
    "--folder",
    type=PATH,
    default=None,
    help="New folder of images, laid out for the imagefolder of `datasets`.",
)
def export(root: Path, npy: Path | None, folder: Path | None) -> None:
    """Write a set as one array or as a folder of images."""
    from ...shards.editing.export import export_folder, export_npy

    if (npy is None) == (folder is None):
        given = "both" if npy else "neither"
        raise InputError(f"{given} of --npy and --folder given; expected exactly one")

    shards = ShardSet(root)
    with ProgressReport("export", "anchors") as report:
        if npy:
            export_npy(shards, npy, report)
        if folder:
            export_folder(shards, folder, report)

    say_unfinished(root, shards.manifest)
    say(f"{len(shards)} anchors, {shards.candidates} candidates each: {npy or folder}")
