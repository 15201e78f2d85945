"""`clsp autoencoder train`."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import computes_bf16, read_launch
from .options import check_option, out_option, recipe_options
from .progress import ProgressReport, open_anchors, say, say_if_emulated
from .recipe import load_recipe
from .shards.plan_make import readable_anchors

if TYPE_CHECKING:
    from ..generate import AutoencoderConfig, PerceptualDistance, PerceptualModel


@click.command(
    epilog="Example: clsp autoencoder train --recipe digits --out runs/digits/autoencoder "
    "--set autoencoder.channels=[32,64]"
)
@recipe_options
@out_option(
    "Folder for the autoencoder, in diffusers' format; a run that was interrupted goes on from it."
)
@check_option
def train(recipe_name: str, overrides: tuple[str, ...], out: Path, check: bool) -> None:
    """Train an autoencoder on the anchors alone.

    A latent diffusion model takes it by diffusion.latent; see docs/autoencoder.md.
    """
    read_launch()  # what is left over in the environment is refused before any work

    # Recipe and anchors
    recipe = load_recipe(recipe_name, overrides)
    anchors = readable_anchors(open_anchors(recipe.anchors), out)

    # Torch, after what needs none
    from ..generate import begun_precision, check_autoencoder_out, train_autoencoder

    # Precision: of the training that was begun, else the device's
    begun = begun_precision(out)
    config = recipe.autoencoder.decided(begun == "bf16" if begun else computes_bf16())
    recipe = recipe.model_copy(update={"autoencoder": config})
    say_if_emulated("autoencoder.precision", config.precision == "bf16")

    # Check
    perceptual = _perceptual_model(config, anchors.size) if config.perceptual else None
    finished = check_autoencoder_out(anchors, config, out, perceptual)
    if perceptual and not finished:
        perceptual.load()
    if check:
        return

    if finished:
        say(f"autoencoder: {out} (already trained)")
        return

    # Train
    with ProgressReport("autoencoder", "steps") as report:
        train_autoencoder(anchors, config, out, report, perceptual, recipe.content)

    say(f"autoencoder: {out}")


def _perceptual_model(config: "AutoencoderConfig", size: int) -> "PerceptualModel":
    """Return in whose features images of this size are compared, with the way to have it."""
    from ..evaluate import encoder_digest, load_stages
    from ..generate import PerceptualDistance, PerceptualModel, check_perceptual

    name = config.perceptual

    @cache
    def load() -> "PerceptualDistance":
        model, facts = load_stages(name)
        distance = PerceptualDistance(model, facts["mean"], facts["std"])
        check_perceptual(distance, name, size)
        return distance

    return PerceptualModel(encoder_digest(name), load)
