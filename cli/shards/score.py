"""Measure a set: `clsp shards score` composes the set, an encoder and the measures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import pyarrow.parquet as pq

from ...core import InputError, canonical_json, differences, run_stamp, write_file
from ...shards import ImageSource, ShardSet, read_manifest
from ...shards.format.layout import scores_path
from ...shards.reading.measures import find_measure
from ...shards.reading.scores import add_scores, check_name
from ..options import PATH, encoder_option, set_argument, set_option
from ..progress import ProgressReport, open_anchors, say, say_if_emulated, walking
from ..recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from ...evaluate import QualityFacts
    from ...train import PretrainConfig


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
    help="Recipe of the test images to look for, the anchors that a set lacks and the augmentations to compare with; "
    "without a recipe, those of the encoder's own training.",
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
    """Measure every candidate of a set in an encoder's features: hardness, rank, diversity, labels, copies.

    Where anchors have labels, it says how well each measure that needs none tells right candidates from wrong ones.
    """
    shards = ShardSet(root)
    recipe = load_recipe(recipe_name, overrides) if recipe_name else None
    from ...evaluate import PACKAGES, encoder_digest, load_encoder, measure_quality, quality_path

    # What the scores are made of
    precision = recipe.linear_eval.precision if recipe else "no"
    say_if_emulated("linear_eval.precision", precision == "bf16")
    path = out or quality_path(root, name)
    made = {
        "data": shards.identity,
        "encoder": encoder_name,
        "encoder_digest": encoder_digest(encoder_name),
        "precision": precision,
        "recipe": recipe.model_dump(mode="json") if recipe else None,
    }

    if _is_scored(root, name, path, made):
        say(
            f"scores/{name}.parquet: these scores are there already; measures of the whole set: {path}"
        )
        return

    check_name(root, name)
    encoder = load_encoder(encoder_name, precision)

    # The images to measure
    if not shards.plan.shards.include_anchors:
        shards = ShardSet(root, open_anchors(recipe.anchors) if recipe else None)
    test = _test_images(recipe, shards.size) if recipe else None

    # Measure
    views = recipe.pretrain if recipe else _training_of(encoder_name)
    with ProgressReport(f"score {name}", "anchors") as report:
        quality = measure_quality(shards, encoder, views, test, report)

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


def _is_scored(root: Path, name: str, path: Path, made: Mapping[str, Any]) -> bool:
    """Return True if the set has these very scores, and `path` the measures of the whole set that go with them.

    Raises:
        InputError: scores of that name are by another encoder, of other candidates, or were made in another way.
    """
    scores = scores_path(root, name)
    if scores.relative_to(root).as_posix() not in read_manifest(root).files:
        return False

    advice = "scores are never changed, choose another --name"
    there = _made_of(scores)
    if there is None:
        raise InputError(f"{scores} exists, and does not say what made it; {advice}")

    # Another encoder, whatever its folder is called
    if there.get("encoder_digest") != made["encoder_digest"]:
        raise InputError(
            f"{scores} is by the encoder {_encoder_text(there)}; found {_encoder_text(made)}; {advice}"
        )

    # Other images, or another way
    differs = _differences(there, made)
    if differs:
        raise InputError(f"{scores} was made in another way ({'; '.join(differs)}); {advice}")

    if not _holds(path, made):
        raise InputError(
            f"{scores} exists, but {path} does not hold the measures of the whole set that go with it; {advice}"
        )

    return True


def _made_of(scores: Path) -> dict[str, Any] | None:
    """Return what made a file of scores; None where it does not say."""
    try:
        metadata = pq.read_schema(scores).metadata or {}
        made = json.loads(metadata[b"clsp"])
    except (KeyError, OSError, ValueError):
        return None

    return made if isinstance(made, dict) else None


def _encoder_text(made: Mapping[str, Any]) -> str:
    """Name an encoder, and its weights where its name does not tell them."""
    name = made.get("encoder")
    digest = str(made.get("encoder_digest"))
    return str(name) if digest == name else f"{name} (SHA-256 {digest[:12]}…)"


def _differences(there: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    """Say in what the making of scores differs, a whole recipe or the digests of layers in few words."""
    old = _without_name(there)
    new = _without_name(made)
    found = []

    if old.pop("data", None) != new.pop("data"):
        found.append("of other candidates than the set has now")

    was_given = old.get("recipe") is not None
    is_given = new["recipe"] is not None
    if was_given != is_given:
        found.append("with a recipe, and none is given now" if was_given else "without a recipe")
        old["recipe"] = new["recipe"]

    return found + differences(old, new)


def _without_name(made: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides scores: all but the folder of the encoder, whose digest tells it."""
    return {key: value for key, value in made.items() if key != "encoder"}


def _holds(path: Path, made: Mapping[str, Any]) -> bool:
    """Return True if a file of measures is of what these scores are made of."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return all(content.get(key) == value for key, value in _without_name(made).items())
    except (OSError, ValueError, AttributeError):
        return False


def _training_of(encoder_name: str) -> "PretrainConfig":
    """Return a training with the augmentations of an encoder's own, or the default ones where no run tells."""
    from ...evaluate import read_run
    from ...train import AugmentConfig, PretrainConfig

    run = read_run(Path(encoder_name))
    if run is None:
        say(
            "compared with views by the default augmentations, for no run tells the encoder's own; --recipe sets others"
        )
        return PretrainConfig()

    augment = AugmentConfig.from_record(run.get("pretrain", {}).get("augment", {}))
    return PretrainConfig(augment=augment)


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

    if facts.too_easy_note:
        say(facts.too_easy_note)

    if facts.labelled_anchors is not None:
        _say_areas(facts, facts.labelled_anchors)


def _say_areas(facts: "QualityFacts", labelled: int) -> None:
    """Say how well each label-free measure tells right candidates from wrong ones."""
    from ...evaluate import AUROC_NOTE

    if not facts.auroc:
        say(f"no AUROC: all candidates of {labelled} labelled anchors are right, or all wrong")
        return

    say(f"AUROC of measures without labels, by the candidates of {labelled} labelled anchors:")
    for name in facts.auroc:
        better = find_measure(name).better
        say(f"  {name.replace('_', ' '):22} {facts.area_text(name):13}   {better} is better")

    say(f"  ({AUROC_NOTE})")
