"""`clsp linear-eval`, `clsp knn` and `clsp transfer`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import click

from .options import PATH, expand, out_option, recipe_options
from .progress import ProgressReport, say, say_if_emulated
from .recipe import Recipe, load_recipe

Evaluation = Callable[[Any, Any, int], dict[str, Any]]

checkpoint_option = click.option(
    "--checkpoint",
    required=True,
    type=PATH,
    help="A run of clsp pretrain, or a timm model's folder; {name}, {seed} work.",
)


@click.command(
    "linear-eval", epilog="Example: clsp linear-eval --recipe digits --checkpoint RUN --out RUN"
)
@recipe_options
@checkpoint_option
@out_option("Folder for linear.json or, from the protocol sweep, sweep.json.")
@click.option(
    "--protocol",
    type=click.Choice(["clsp", "sweep"]),
    help="Instead of the recipe's linear_eval.protocol.",
)
def linear_eval(
    recipe_name: str, overrides: tuple[str, ...], checkpoint: Path, out: Path, protocol: str | None
) -> None:
    """Linear evaluation of a pretrained backbone (the paper's protocol, or a sweep chosen on a part of train)."""
    from ..evaluate import evaluate_few_labels, evaluate_linear, evaluate_sweep

    recipe = load_recipe(
        recipe_name, (*overrides, *([f"linear_eval.protocol={protocol}"] if protocol else []))
    )
    config = recipe.linear_eval
    sweeps = config.protocol == "sweep"
    evaluate = evaluate_sweep if sweeps else evaluate_linear

    def run(train: Any, test: Any, classes: int) -> dict[str, Any]:
        result = evaluate(train, test, classes, config, recipe.pretrain.seed)
        if config.labels:
            result |= evaluate_few_labels(train, test, classes, config.labels, config.label_draws)
        return result

    _evaluate(recipe, "sweep" if sweeps else "linear", checkpoint, out, config.flip, run)


@click.command(epilog="Example: clsp knn --recipe digits --checkpoint RUN --out RUN")
@recipe_options
@checkpoint_option
@out_option("Folder for knn.json.")
@click.option(
    "--replica",
    is_flag=True,
    help="Also the best k on the test images, which the paper's authors report.",
)
def knn(
    recipe_name: str, overrides: tuple[str, ...], checkpoint: Path, out: Path, replica: bool
) -> None:
    """k-nearest-neighbour evaluation of a pretrained backbone; also a map of the test images' features."""
    from ..evaluate import evaluate_knn, feature_map

    recipe = load_recipe(recipe_name, overrides)

    def run(train: Any, test: Any, classes: int) -> dict[str, Any]:
        return {**evaluate_knn(train, test, classes, recipe.knn, replica), "map": feature_map(test)}

    _evaluate(recipe, "knn", checkpoint, out, False, run)


def _evaluate(
    recipe: Recipe, task: str, checkpoint: Path, out: Path, flips: bool, run: Evaluation
) -> None:
    from ..evaluate import check_labels, extract, labelled_sets, write_result

    checkpoint = expand(checkpoint, recipe)
    out = expand(out, recipe)
    config = recipe.linear_eval
    say_if_emulated("linear_eval.precision", config.precision == "bf16")
    encoder = load_checkpoint(checkpoint, config.precision)
    train_images, test_images = labelled_sets(recipe.anchors, config, encoder.size)
    classes = check_labels(
        train_images.labels(), test_images.labels(), complete=not config.test_limit
    )

    with ProgressReport(f"{checkpoint.name}: features", "images") as report:
        train = extract(encoder, train_images, flips, report)
        test = extract(encoder, test_images)

    result = run(train, test, classes)
    content = recipe.model_dump(mode="json")
    seed = recipe.pretrain.seed
    path = write_result(out, task, result, checkpoint, content, seed, precision=encoder.precision)
    figures = ", ".join(
        f"{name} {value:.2f}" for name, value in result.items() if isinstance(value, float)
    )
    say(f"{checkpoint.name}: {task} {figures} % ({path})")


def load_checkpoint(checkpoint: Path, precision: Literal["no", "bf16"]) -> Any:
    """The encoder in a folder; unlike `--encoder` a checkpoint is never a name on the hub."""
    from ..evaluate import backbone_folder, load_encoder

    return load_encoder(backbone_folder(checkpoint), precision)


@click.command(
    epilog="Example: clsp transfer --recipe cifar10 --checkpoint RUN --out RUN --set transfer.only=[dtd]"
)
@recipe_options
@checkpoint_option
@out_option(
    "Folder for transfer.json; sets that it holds for this checkpoint are not evaluated again."
)
def transfer(recipe_name: str, overrides: tuple[str, ...], checkpoint: Path, out: Path) -> None:
    """Transfer of a pretrained backbone to other data sets: logistic regression on frozen features."""
    from ..evaluate import checkpoint_digest, finished_sets, run_transfer, summary, write_result

    recipe = load_recipe(recipe_name, overrides)
    checkpoint = expand(checkpoint, recipe)
    out = expand(out, recipe)
    say_if_emulated("transfer.precision", recipe.transfer.precision == "bf16")
    encoder = load_checkpoint(checkpoint, recipe.transfer.precision)
    config = recipe.transfer
    found = finished_sets(out / "transfer.json", config, checkpoint_digest(checkpoint))
    content = recipe.model_dump(mode="json")
    seed = recipe.pretrain.seed

    def save(sets: dict[str, Any]) -> None:
        facts = {"sets": sets, "precision": encoder.precision}
        write_result(out, "transfer", summary(sets), checkpoint, content, seed, **facts)
        name, value = list(sets.items())[-1]
        say(
            f"{name}: {value['metric']} {value[value['metric']]:.2f} %, l2 {value['chosen']['l2']:.2g}"
        )

    sets = run_transfer(encoder, config, found, save)
    if not set(sets) - set(found):
        say("every set was evaluated before")

    say(f"{checkpoint.name}: transfer, {len(sets)} sets ({out / 'transfer.json'})")
