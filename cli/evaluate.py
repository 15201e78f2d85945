"""`clsp linear-eval` and `clsp knn`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from .options import PATH, expand, out_option, recipe_options
from .progress import say
from .recipe import Recipe, load_recipe

Evaluation = Callable[[Any, Any, int], dict[str, Any]]

checkpoint_option = click.option(
    "--checkpoint",
    required=True,
    type=PATH,
    help="A run of clsp pretrain, or a timm model's folder; {name}, {seed} work.",
)


@click.command("linear-eval", epilog="Example: clsp linear-eval --recipe digits --checkpoint RUN --out RUN")
@recipe_options
@checkpoint_option
@out_option("Folder for linear.json.")
def linear_eval(recipe_name: str, overrides: tuple[str, ...], checkpoint: Path, out: Path) -> None:
    """Linear evaluation of a pretrained backbone (the paper's protocol)."""
    from ..evaluate import evaluate_linear

    recipe = load_recipe(recipe_name, overrides)

    def run(train: Any, test: Any, classes: int) -> dict[str, Any]:
        result = evaluate_linear(train, test, classes, recipe.linear_eval, recipe.pretrain.seed)
        return {"protocol": "clsp", **result}

    _evaluate(recipe, "linear", checkpoint, out, recipe.linear_eval.flip, run)


@click.command(epilog="Example: clsp knn --recipe digits --checkpoint RUN --out RUN")
@recipe_options
@checkpoint_option
@out_option("Folder for knn.json.")
def knn(recipe_name: str, overrides: tuple[str, ...], checkpoint: Path, out: Path) -> None:
    """k-nearest-neighbour evaluation of a pretrained backbone."""
    from ..evaluate import evaluate_knn

    recipe = load_recipe(recipe_name, overrides)

    def run(train: Any, test: Any, classes: int) -> dict[str, Any]:
        return evaluate_knn(train, test, classes, recipe.knn)

    _evaluate(recipe, "knn", checkpoint, out, False, run)


def _evaluate(recipe: Recipe, task: str, checkpoint: Path, out: Path, flips: bool, run: Evaluation) -> None:
    from ..evaluate import backbone_folder, backbone_size, check_labels, extract, labelled_sets, write_result

    checkpoint, out = expand(checkpoint, recipe), expand(out, recipe)
    folder = backbone_folder(checkpoint)
    train_images, test_images = labelled_sets(recipe.anchors, recipe.linear_eval, backbone_size(folder))
    classes = check_labels(train_images.labels(), test_images.labels())
    train, test = extract(folder, train_images, flips), extract(folder, test_images)
    result = run(train, test, classes)
    path = write_result(out, task, result, checkpoint, recipe.model_dump(mode="json"), recipe.pretrain.seed)
    figures = ", ".join(f"{name} {value:.2f}" for name, value in result.items() if isinstance(value, float))
    say(f"{checkpoint.name}: {task} {figures} % ({path})")
