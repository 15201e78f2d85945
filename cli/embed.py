"""Write the features of images: `clsp embed`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import InputError, differences
from ..shards import ImageSource
from .options import encoder_option, out_option, set_option
from .progress import ProgressReport, say, say_if_emulated, walking
from .recipe import load_recipe
from .shards.plan_make import readable_anchors

if TYPE_CHECKING:
    from ..evaluate import FeaturesRecord

EXAMPLE = "Example: clsp embed --encoder runs/digits/pretrain/simclr-s0 --images photos --out photos.parquet"


@click.command(epilog=EXAMPLE)
@encoder_option
@click.option(
    "--images",
    "location",
    required=True,
    metavar="SOURCE",
    help="What anchors.path takes: a folder, a parquet file, a hub id, digits; or a sealed shard set: its anchors.",
)
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE",
    help="Gives the other keys of [anchors] and linear_eval.precision; default: every key's own default.",
)
@set_option
@out_option("Parquet file to write; new, or of the same features.")
def embed(
    encoder_name: str,
    location: str,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    out: Path,
) -> None:
    """Write the features of any images, by any encoder, to a Parquet file: a row per image."""
    recipe = load_recipe(recipe_name, overrides)
    from ..evaluate import load_encoder, make_record, open_images, read_record, write_features

    if out.is_dir():
        raise InputError(
            f"--out {out} is a folder; give the file to write, for example {out / 'features.parquet'}"
        )
    there = read_record(out) if out.exists() else None

    # The encoder, and the images in its size
    precision = recipe.linear_eval.precision
    say_if_emulated("linear_eval.precision", precision == "bf16")
    encoder = load_encoder(encoder_name, precision)
    with walking() as report:
        images = open_images(location, recipe.anchors, encoder.size, report)
    if isinstance(images, ImageSource):
        images = readable_anchors(images, depth="header")

    # What is there already
    if there is not None:
        _check_same(out, there, make_record(encoder, encoder_name, images))
        say(f"{out}: these features are there already, of {len(images)} images")
        return

    with ProgressReport("embed", "images") as report:
        record = write_features(out, encoder, encoder_name, images, report)

    say(f"{out}: features of {record.source.images} images by {record.encoder}")


def _check_same(out: Path, there: "FeaturesRecord", asked: "FeaturesRecord") -> None:
    """Raise InputError if a file holds other features than those asked for."""
    different = differences(there.job, asked.job)
    if different:
        raise InputError(
            f"{out} holds other features ({'; '.join(different)}); choose another --out or remove it"
        )
