"""`clsp pretrain`."""

import copy
from pathlib import Path
from typing import Any

import click

from ..core import launched_rank, read_launch
from ..shards import ShardSet
from .options import check_option, expand, out_option, recipe_options
from .progress import (
    ProgressReport,
    open_anchors,
    say,
    say_if_emulated,
    say_if_too_few,
    say_unfinished,
    walking,
)
from .recipe import Recipe, load_recipe


@click.command(
    epilog="Example: clsp pretrain --recipe digits --shards runs/digits/shards --out 'runs/digits/{name}-s{seed}'"
)
@recipe_options
@click.option(
    "--shards",
    "root",
    required=True,
    help="The shard set: a folder, or a URL that is read through a cache.",
)
@out_option(
    "Folder of the run; {name} and {seed} are filled in. A run that was interrupted goes on from it."
)
@click.option("--method", default=None, help="Use this method, not the recipe's (pretrain.method).")
@click.option(
    "--seed", default=None, type=int, help="Use this seed, not the recipe's (pretrain.seed)."
)
@check_option
def pretrain(
    recipe_name: str,
    overrides: tuple[str, ...],
    root: str,
    out: Path,
    method: str | None,
    seed: int | None,
    check: bool,
) -> None:
    """Pretrain a backbone on a shard set."""
    read_launch()  # what is left over in the environment is refused before any work

    # Recipe
    given = {"pretrain.method": method, "pretrain.seed": seed}
    settings = [f"{key}={value}" for key, value in given.items() if value is not None]
    recipe = load_recipe(recipe_name, (*overrides, *settings))
    out = expand(out, recipe)
    from ..train import batch_order, build_method, check_run, layers_used, pair_loader, pretrain
    from ..train.run import with_view_size

    # Shard set, with the layers that the run began with
    shards = ShardSet(root, layers=layers_used(out))
    if not shards.plan.shards.include_anchors:
        source = recipe.anchors.model_copy(
            update={"size": shards.size}
        )  # the recipe's is the views'
        shards = ShardSet(root, open_anchors(source), layers_used(out))

    say_unfinished(shards.root, shards.manifest)

    # Check
    config = with_view_size(recipe.pretrain, shards, recipe.anchors.size)
    loader = pair_loader(shards, config, batch_order(shards, config))
    finished = check_run(shards, config, out)
    if check:
        build_method(config)
        return

    if finished:
        say(f"backbone: {out / 'backbone'} (already trained)")
        return

    # Train
    if loader.dataset.choice.summary:
        say(f"{recipe.pretrain.synthetic.measure}: {loader.dataset.choice.summary}")
    if config.size:
        say(f"views of {config.size} pixels, cut out of images of {shards.size}x{shards.size}")
    say_if_emulated("pretrain.precision", recipe.pretrain.precision == "bf16")
    probe = (
        _knn_probe(recipe, config.view_size(shards.size))
        if recipe.pretrain.knn_epochs and launched_rank() == 0
        else None
    )

    with ProgressReport(out.name, "steps") as report:
        pretrain(shards, config, out, report, probe, recipe.content)

    say(f"backbone: {out / 'backbone'}")


def _knn_probe(recipe: Recipe, size: int) -> Any:
    """Make the probe of a backbone in training: kNN with the recipe's first k, on a copy: `{"knn": percent}`."""
    from ..evaluate import Encoder, check_labels, evaluate_knn, extract, labelled_sets

    # Images
    with walking() as report:
        train_images, test_images = labelled_sets(recipe.anchors, recipe.linear_eval, size, report)
    say_if_too_few(recipe.knn.k[:1], len(train_images))
    classes = check_labels(train_images.labels(), test_images.labels(), complete=False)

    # What makes an encoder of a backbone, and the first k
    config = {
        "mean": recipe.pretrain.mean,
        "std": recipe.pretrain.std,
        "input_size": (3, size, size),
    }
    knn = recipe.knn.model_copy(update={"k": recipe.knn.k[:1]})

    def probe(backbone: Any) -> dict[str, float]:
        encoder = Encoder(copy.deepcopy(backbone), config, recipe.linear_eval.precision)
        result = evaluate_knn(
            extract(encoder, train_images), extract(encoder, test_images), classes, knn
        )
        return {"knn": result[f"k{knn.k[0]}"]}

    return probe
