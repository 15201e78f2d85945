"""Measure a set: `clsp shards score` composes the set, an encoder and the measures."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core import InputError, canonical_json, run_stamp, write_file
from ...shards import ImageSource, ShardSet, read_manifest
from ...shards.format.layout import scores_path
from ...shards.reading.scores import add_scores, check_name
from ..options import PATH, encoder_option, set_argument, set_option
from ..progress import ProgressReport, open_anchors, say, say_if_emulated, walking
from ..recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from ...evaluate import QualityFacts


@click.command(
    epilog="Example: clsp shards score SET --encoder runs/digits/pretrain/simclr-s0 --name simclr"
)
@set_argument
@encoder_option
@click.option("--name", required=True, help="Name of the scores, which become scores/NAME.parquet.")
@click.option(
    "--recipe",
    "recipe_name",
    metavar="NAME|FILE",
    help="Recipe of the test images to look for, the augmentations to compare with and the anchors that a set lacks.",
)
@set_option
@click.option(
    "--out",
    type=PATH,
    help="File for the measures of the whole set; default: SET-quality-NAME.json.",
)
def score(
    root: Path,
    encoder_name: str,
    name: str,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    out: Path | None,
) -> None:
    """Measure every candidate of a set in an encoder's features: hardness, labels, diversity, copies."""
    shards = ShardSet(root)
    recipe = load_recipe(recipe_name, overrides) if recipe_name else None
    from ...evaluate import PACKAGES, encoder_digest, load_encoder, measure_quality, quality_path
    from ...train import PretrainConfig

    # What the scores are made of
    precision = recipe.linear_eval.precision if recipe else "no"
    say_if_emulated("linear_eval.precision", precision == "bf16")
    encoder = load_encoder(encoder_name, precision)
    path = out or quality_path(root, name)
    made = {
        "data": shards.identity,
        "encoder": encoder_name,
        "encoder_digest": encoder_digest(encoder_name),
        "precision": encoder.precision,
        "recipe": recipe.model_dump(mode="json") if recipe else None,
    }

    if _is_scored(root, name, path, made):
        say(
            f"scores/{name}.parquet: these scores are there already; measures of the whole set: {path}"
        )
        return

    check_name(root, name)

    # The images to measure
    if not shards.plan.shards.include_anchors:
        shards = ShardSet(root, open_anchors(recipe.anchors) if recipe else None)
    test = _test_images(recipe, shards.size) if recipe else None

    # Measure
    pretrain = recipe.pretrain if recipe else PretrainConfig()
    with ProgressReport(f"score {name}", "anchors") as report:
        quality = measure_quality(shards, encoder, pretrain, test, report)

    # Write; the scores last, for their name is then taken
    content = {
        "task": "quality",
        "name": name,
        "set": shards.set_id,
        **made,
        **run_stamp(*PACKAGES),
        "result": quality.facts.content(),
    }
    write_file(path, canonical_json(content))
    keys = (shards.key(position) for position in range(len(shards)))
    set_id = add_scores(root, name, keys, quality.scores, made)
    _say_facts(quality.facts)
    say(
        f"scores/{name}.parquet added, the set's new ID is {set_id}; measures of the whole set: {path}"
    )


def _is_scored(root: Path, name: str, path: Path, made: dict[str, Any]) -> bool:
    """Return True if the set has these very scores: of the same images, by the same encoder."""
    scores = scores_path(root, name).relative_to(root).as_posix()
    if scores not in read_manifest(root).files or not path.exists():
        return False

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {key: content.get(key) for key in made} == made
    except (ValueError, AttributeError):
        return False


def _test_images(recipe: Recipe, size: int) -> ImageSource | None:
    """Return the recipe's test images, or None (with a line that says so) where they cannot be had."""
    from ...evaluate import labelled_sets

    try:
        with walking() as report:
            return labelled_sets(recipe.anchors, recipe.linear_eval, size, report)[1]
    except InputError as error:
        if recipe.linear_eval.test_path:
            raise
        say(f"no test images, so no measure of leakage: {error}")
        return None


def _say_facts(facts: "QualityFacts") -> None:
    """Say the measures of the whole set."""
    content = facts.content()
    for name in ("frechet_distance", "kernel_distance", "precision", "recall"):
        say(f"{name.replace('_', ' '):24} {content[name]:.4g}")

    if facts.probe_top1 is not None:
        say(f"{'probe, on held-out anchors':24} {facts.probe_top1:.4g} %")

    for name, value in facts.means.items():
        say(f"{'mean ' + name.replace('_', ' '):24} {value:.4g}")
