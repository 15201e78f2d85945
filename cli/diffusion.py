"""`clsp diffusion train`."""

from pathlib import Path

import click

from ..shards import Anchors
from .options import check_option, out_option, recipe_options
from .progress import ProgressReport, say
from .recipe import load_recipe


@click.command(epilog="Example: clsp diffusion train --recipe digits --out runs/digits/diffusion")
@recipe_options
@out_option("Folder for the model, in diffusers' format; a run that was interrupted goes on from it.")
@check_option
def train(recipe_name: str, overrides: tuple[str, ...], out: Path, check: bool) -> None:
    """Train an unconditional DDPM on the anchors."""
    recipe = load_recipe(recipe_name, overrides)
    if recipe.diffusion.path:
        say(f"nothing to train: recipe {recipe_name} uses the diffusion model {recipe.diffusion.path}")
        return
    anchors = Anchors(recipe.anchors)
    from ..generate import build_unet, check_out, train_diffusion  # torch, after the checks that need none

    finished = check_out(anchors, recipe.diffusion, out)
    if check:
        build_unet(recipe.diffusion, anchors.size)
        return
    if finished:
        say(f"diffusion model: {out} (already trained)")
        return
    recipe.save(out / "recipe.toml")
    with ProgressReport("diffusion", "steps") as report:
        train_diffusion(anchors, recipe.diffusion, out, report)
    say(f"diffusion model: {out}")
