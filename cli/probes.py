"""Evaluate pretrained backbones: `clsp linear-eval`, `clsp knn` and `clsp transfer`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ..evaluate.features.checkpoint import is_unet_name
from ..evaluate.probes.registry import (
    PROBES,
    FewLabels,
    Figures,
    Probe,
    find_probe,
    probe_of_protocol,
)
from .options import PATH, expand, out_option, recipe_options
from .progress import ProgressReport, say, say_if_emulated, say_if_too_few, walking
from .recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from ..evaluate import Encoder

PROTOCOLS = [probe.protocol for probe in PROBES if probe.protocol]

checkpoint_option = click.option(
    "--checkpoint",
    required=True,
    type=PATH,
    help="A run of clsp pretrain, the folder of a timm model, or unet:DIR, a diffusion model's features: "
    "unet:DIR@BLOCK:TIMESTEP or, chosen on a part of train, unet:DIR@chosen; {name} and {seed} are filled in.",
)


@click.command(
    "linear-eval", epilog="Example: clsp linear-eval --recipe digits --checkpoint RUN --out RUN"
)
@recipe_options
@checkpoint_option
@out_option("Folder for linear.json or, with the protocol sweep, sweep.json.")
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="Use this protocol, not the recipe's (linear_eval.protocol).",
)
def linear_eval(
    recipe_name: str, overrides: tuple[str, ...], checkpoint: Path, out: Path, protocol: str | None
) -> None:
    """Evaluate a pretrained backbone with a linear classifier: the paper's, or a sweep chosen on a part of train."""
    if protocol:
        overrides = (*overrides, f"linear_eval.protocol={protocol}")

    recipe = load_recipe(recipe_name, overrides)
    _evaluate(recipe, probe_of_protocol(recipe.linear_eval.protocol), checkpoint, out)


@click.command(epilog="Example: clsp knn --recipe digits --checkpoint RUN --out RUN")
@recipe_options
@checkpoint_option
@out_option("Folder for knn.json.")
@click.option(
    "--replica",
    is_flag=True,
    help="Also report the best k on the test images, as the paper's authors do.",
)
def knn(
    recipe_name: str, overrides: tuple[str, ...], checkpoint: Path, out: Path, replica: bool
) -> None:
    """Evaluate a pretrained backbone by its nearest neighbours; also map the test images' features."""
    recipe = load_recipe(recipe_name, overrides)
    _evaluate(recipe, find_probe("knn"), checkpoint, out, replica=replica)


def _evaluate(recipe: Recipe, probe: Probe, checkpoint: Path, out: Path, **options: bool) -> None:
    """Extract the features of the recipe's labelled sets, run a probe on them and write what it finds.

    Args:
        options: further arguments of the probe.
    """
    from ..evaluate import check_amounts, check_labels, extract, labelled_sets, write_result

    checkpoint = expand(checkpoint, recipe)
    out = expand(out, recipe)

    # Open the images, and check their labels before any work
    config = recipe.linear_eval
    say_if_emulated("linear_eval.precision", config.precision == "bf16")
    chosen = chosen_checkpoint(checkpoint, recipe)
    checkpoint = chosen.checkpoint
    encoder = load_checkpoint(checkpoint, config.precision)
    with walking() as report:
        train_images, test_images = labelled_sets(recipe.anchors, config, encoder.size, report)
    train_labels_N = train_images.labels()
    classes = check_labels(
        train_labels_N,
        test_images.labels(),
        complete=not config.test_limit,
        names=train_images.class_names,
    )
    if probe.protocol:
        check_amounts(train_labels_N, config.labels)

    if probe.section == "knn":
        say_if_too_few(recipe.knn.k, len(train_images))

    # Extract the features
    flips = probe.mirrors and config.flip
    with ProgressReport(f"{checkpoint.name}: features", "images") as report:
        train = extract(encoder, train_images, flips, report)
        test = extract(encoder, test_images)

    # Evaluate
    seed = recipe.pretrain.seed
    section = getattr(recipe, probe.section)
    result = probe.run(train, test, classes, section, seed, **options)
    content = recipe.model_dump(mode="json")
    facts = {"precision": encoder.precision, **chosen.facts}
    path = write_result(out, probe.task, result, checkpoint, content, seed, **facts)

    say(f"{checkpoint.name}: {probe.task} {', '.join(_figures(result))} % ({path})")


def _figures(result: Figures) -> list[str]:
    """Return every figure with its name; those with few labels with their deviation over the draws."""
    few_labels = result.get("few_labels")
    deviations = FewLabels.model_validate(few_labels).std if few_labels else {}
    texts = []
    for name, value in result.items():
        if not isinstance(value, float):
            continue

        std = deviations.get(name)
        spread = "" if std is None else f" ± {std:.2f}"
        texts.append(f"{name} {value:.2f}{spread}")

    return texts


def load_checkpoint(checkpoint: Path, precision: Literal["no", "bf16"]) -> "Encoder":
    """Load the encoder in a folder, or a U-Net's features; unlike `--encoder` it is never one of timm's names."""
    from ..evaluate import backbone_folder, load_encoder

    name = str(checkpoint)
    return load_encoder(name if is_unet_name(name) else backbone_folder(checkpoint), precision)


@dataclass(frozen=True)
class ChosenCheckpoint:
    """Holds the checkpoint to evaluate, and what a result says of how it was chosen."""

    checkpoint: Path
    facts: dict[str, Any]


def chosen_checkpoint(checkpoint: Path, recipe: Recipe) -> ChosenCheckpoint:
    """Return the checkpoint; of `unet:DIR@chosen` the block and timestep that a part of the recipe's train chooses."""
    if not is_unet_name(str(checkpoint)):
        return ChosenCheckpoint(checkpoint, {})

    from ..evaluate import choose_unet_features, labelled_sets, parse_unet_name
    from ..generate import image_size

    name = parse_unet_name(str(checkpoint))
    if not name.is_chosen:
        return ChosenCheckpoint(checkpoint, {})

    size = image_size(name.path)
    train = labelled_sets(recipe.anchors, recipe.linear_eval, size)[0]
    with ProgressReport("blocks and timesteps", "images") as report:
        choice = choose_unet_features(name, train, recipe.linear_eval.precision, report)

    best = f"{choice.block}:{choice.timestep}"
    say(f"{name.path}: {best} has {choice.accuracies[best]:.2f} % on a held-out part of train")
    facts = {"unet": {"chosen": best, "held_out_top1": dict(choice.accuracies)}}
    return ChosenCheckpoint(Path(name.at(choice.block, choice.timestep).text), facts)


@click.command(
    epilog="Example: clsp transfer --recipe cifar10 --checkpoint RUN --out RUN --set transfer.only=[dtd]"
)
@recipe_options
@checkpoint_option
@out_option(
    "Folder for transfer.json; sets that it holds for this checkpoint are not evaluated again."
)
def transfer(recipe_name: str, overrides: tuple[str, ...], checkpoint: Path, out: Path) -> None:
    """Evaluate a pretrained backbone on other data sets: logistic regression on frozen features."""
    from ..evaluate import (
        encoder_digest,
        finished_sets,
        result_path,
        run_transfer,
        summary,
        write_result,
    )

    recipe = load_recipe(recipe_name, overrides)
    checkpoint = expand(checkpoint, recipe)
    out = expand(out, recipe)
    probe = find_probe("transfer")
    path = result_path(out, probe.task)
    config = recipe.transfer

    # What is there already
    say_if_emulated("transfer.precision", config.precision == "bf16")
    chosen = chosen_checkpoint(checkpoint, recipe)
    checkpoint = chosen.checkpoint
    encoder = load_checkpoint(checkpoint, config.precision)
    found = finished_sets(path, config, encoder_digest(checkpoint))

    # Every other set, written as soon as it is evaluated
    content = recipe.model_dump(mode="json")
    seed = recipe.pretrain.seed

    def save(sets: dict[str, Figures]) -> None:
        facts: dict[str, Any] = {"sets": sets, "precision": encoder.precision, **chosen.facts}
        figures = summary(sets)
        write_result(out, probe.task, figures, checkpoint, content, seed, **facts)

        newest = list(sets)[-1]
        metric = sets[newest]["metric"]
        l2 = sets[newest]["chosen"]["l2"]
        say(f"{newest}: {metric} {figures[newest]:.2f} %, l2 {l2:.2g}")

    sets = run_transfer(encoder, config, found, save)
    if not set(sets) - set(found):
        say("every set was evaluated before")

    say(f"{checkpoint.name}: transfer, {len(sets)} sets ({path})")
