"""`clsp diffusion train`."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..core import computes_bf16, launched_rank, read_launch
from .options import check_option, out_option, recipe_options
from .progress import ProgressReport, open_anchors, say, say_if_emulated
from .recipe import Recipe, load_recipe
from .shards.plan_make import readable_anchors

if TYPE_CHECKING:
    import numpy as np

    from ..generate import Autoencoder, ClusterEncoder, DiffusionConfig
    from ..shards import ImageSource


@click.command(epilog="Example: clsp diffusion train --recipe digits --out runs/digits/diffusion")
@recipe_options
@out_option(
    "Folder for the model, in diffusers' format; a run that was interrupted goes on from it."
)
@check_option
def train(recipe_name: str, overrides: tuple[str, ...], out: Path, check: bool) -> None:
    """Train a DDPM on the anchors: unconditional, or with pseudo-classes.

    Those are made where the recipe says diffusion.condition=clusters; see docs/positives.md.
    """
    read_launch()  # what is left over in the environment is refused before any work

    # Recipe and anchors
    recipe = load_recipe(recipe_name, overrides)
    if recipe.diffusion.path:
        say(
            f"nothing to train: recipe {recipe_name} uses the diffusion model {recipe.diffusion.path}"
        )
        return

    anchors = readable_anchors(open_anchors(recipe.anchors), out)
    # Torch, after what needs none
    from ..evaluate import frechet_probe, load_encoder
    from ..generate import (
        TrainingDigests,
        begun_precision,
        build_unet,
        check_out,
        train_diffusion,
    )

    # Precision: of the training that was begun, else the device's
    begun = begun_precision(out)
    config = recipe.diffusion.decided(begun == "bf16" if begun else computes_bf16())
    recipe = recipe.model_copy(update={"diffusion": config})
    say_if_emulated("diffusion.precision", config.precision == "bf16")

    # Check
    autoencoder = _autoencoder(config, anchors.size)
    encoder = _cluster_encoder(recipe) if config.has_encoder else None
    digests = TrainingDigests.of(encoder, autoencoder)
    finished = check_out(anchors, config, out, digests=digests)
    if check:
        if encoder and not finished:
            load_encoder(config.cluster_encoder)
        side = autoencoder.config.latent_size(anchors.size) if autoencoder else anchors.size
        build_unet(config, side)
        return

    if finished:
        say(f"diffusion model: {out} (already trained)")
        return

    # Train
    probe = None
    if recipe.diffusion.probe_images and launched_rank() == 0:
        probe = frechet_probe(
            load_encoder(recipe.diffusion.probe_encoder), anchors, recipe.diffusion.probe_images
        )

    clip = recipe.sampler.clip
    with ProgressReport("diffusion", "steps") as report:
        train_diffusion(
            anchors,
            config,
            out,
            report,
            probe,
            clip,
            encoder,
            recipe.content,
            autoencoder,
            encoding=lambda: ProgressReport("latents of the anchors", "anchors"),
        )

    say(f"diffusion model: {out}")


def _autoencoder(config: "DiffusionConfig", size: int) -> "Autoencoder | None":
    """Return the autoencoder whose latents the model is to make; None for one of pixels.

    Raises:
        InputError: there is none, or images of that size, or their latents, cannot be divided as they have to be.
    """
    from ..generate import check_halvings, load_autoencoder, read_autoencoder

    if not config.latent:
        return None

    facts = read_autoencoder(config.latent)
    side = facts.latent_size(size)
    check_halvings(side, len(config.channels), "diffusion.channels", "latents")
    return load_autoencoder(facts)


def _cluster_encoder(recipe: Recipe) -> "ClusterEncoder":
    """Return whose features are clustered, with the way to have them."""
    from ..evaluate import embed_images, encoder_digest, encoder_title, load_encoder
    from ..generate import ClusterEncoder

    name = recipe.diffusion.cluster_encoder

    def extract(anchors: "ImageSource") -> "np.ndarray":
        encoder = load_encoder(name)
        with ProgressReport("features of the anchors", "anchors") as report:
            return embed_images(encoder, anchors, report).numpy()

    return ClusterEncoder(encoder_title(name), encoder_digest(name), extract)
