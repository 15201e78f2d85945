"""`clsp reproduce`: the pipeline of a recipe, from images to table, in one go or in slices."""

import json
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core import InputError, holding, owner_of, write_file
from ..options import out_option, recipe_options
from ..progress import open_anchors, say
from ..recipe import Recipe, load_recipe
from .driver import Driver
from .stages import DDAE, Stage, parse_run, pipeline, run_recipe

if TYPE_CHECKING:
    from ...train import PretrainConfig

STATE = "reproduce.json"


@click.command(epilog="Example: clsp reproduce --recipe digits --out runs/demo")
@recipe_options
@out_option("Folder for everything; what is finished there is not done again.")
@click.option(
    "--profile",
    default="",
    help="A budget that the recipe names: minutes, hour, paper; default: the recipe as it stands.",
)
@click.option(
    "--max-minutes",
    type=click.FloatRange(min=0, min_open=True),
    help="Stop after so many minutes; the same command goes on from there.",
)
@click.option(
    "--seeds",
    type=click.IntRange(1),
    help="Run so many seeds per run name, not as many as the recipe says (reproduce.seeds).",
)
@click.option(
    "--jobs",
    default=2,
    show_default=True,
    type=click.IntRange(1),
    help="Stages to run at a time.",
)
@click.pass_obj
def reproduce(
    began: float,
    recipe_name: str,
    overrides: tuple[str, ...],
    out: Path,
    profile: str,
    max_minutes: float | None,
    seeds: int | None,
    jobs: int,
) -> None:
    """Run the whole pipeline of a recipe: diffusion, shards, every run of the comparison, table and report."""
    # The recipe, resolved for every run
    settings = (*overrides, *([f"reproduce.seeds={seeds}"] if seeds else []))
    recipe = load_recipe(recipe_name, settings, profile)
    trained = [name for name in recipe.reproduce.runs if name != DDAE]
    if not trained:
        raise InputError(f"reproduce.runs: {DDAE} alone; expected a run that is trained beside it")

    resolved = {}
    for name in trained:
        run = parse_run(name)
        chosen = [*settings, f"pretrain.method={run.method}"]
        if run.label:
            chosen.append(f"pretrain.label={run.label}")
        resolved[run_recipe(out, name)] = load_recipe(recipe_name, chosen, profile, run=name)

    _check_methods(resolved)
    for name in trained:
        _check_labels(name, resolved[run_recipe(out, name)])
        _check_scores(name, resolved[run_recipe(out, name)])

    recipes = {out / "recipe.toml": recipe, **resolved}
    _check_folder(out, recipes)

    # A data set that is missing is found before anything is written
    open_anchors(recipe.anchors)
    with holding(out):
        _check_folder(out, recipes)  # another process may have begun since
        _claim(out, recipes)

    # The stages
    runs = recipe.reproduce.runs
    stages = pipeline(
        out,
        runs,
        recipe.reproduce.seeds,
        jobs,
        recipe.diffusion.path,
        recipe.reproduce.scores,
        recipe.reproduce.transfer,
    )
    seconds = None if max_minutes is None else 60 * max_minutes
    driver = Driver(out, stages, jobs, seconds, began)
    driver.run()

    # What it has come to
    costs = driver.costs()
    write_file(out / "costs.json", json.dumps(costs, indent=1).encode())
    print((out / "logs" / "compare.log").read_text(encoding="utf-8", errors="replace").rstrip())
    say(f"cost: {_cost_line(stages, costs)} (seconds; {out / 'costs.json'})")
    say(f"report: {out / 'report.html'}, contact sheet: {out / 'contact-sheet.png'}")


def _check_methods(recipes: dict[Path, Recipe]) -> None:
    from ...train import METHODS

    for recipe in recipes.values():
        if recipe.pretrain.method not in METHODS:
            known = ", ".join(METHODS)
            raise InputError(
                f"reproduce.runs: no method {recipe.pretrain.method}; there are {known}"
            )


def _check_labels(name: str, recipe: Recipe) -> None:
    """Raise InputError unless a run's name says whether labels choose its candidates, and they may."""
    from ...train.label_permission import check_permission

    config = _config_of(name, recipe)
    check_permission(config)

    right = str(replace(parse_run(name), by_labels=config.goes_by_labels))
    if name != right:
        does = "chooses" if config.goes_by_labels else "does not choose"
        raise InputError(
            f"reproduce.runs: {name}; by pretrain.synthetic.scores, measure and keep this run {does} candidates by "
            f"labels, so call it {right}"
        )


def _check_scores(name: str, recipe: Recipe) -> None:
    """Raise InputError if a run goes by scores that nothing makes before it."""
    config = _config_of(name, recipe)
    scores = config.synthetic.scores
    made = recipe.reproduce.scores
    if config.goes_by_measure and scores not in made:
        raise InputError(
            f"reproduce.runs: {name} chooses candidates by the scores {scores}, and reproduce.scores names "
            f"{', '.join(made) or 'none'}; add there: {scores} = ENCODER"
        )


def _config_of(name: str, recipe: Recipe) -> "PretrainConfig":
    """Return the settings of a run, with the source that its name says."""
    source = parse_run(name).source
    synthetic = recipe.pretrain.synthetic.model_copy(update={"source": source})
    return recipe.pretrain.model_copy(update={"synthetic": synthetic})


def _check_folder(out: Path, recipes: dict[Path, Recipe]) -> None:
    """Raise InputError if the folder holds something else than the work of these recipes."""
    # Another version's work
    found = owner_of(out, STATE, "work of clsp reproduce")
    if found is not None and json.loads(found) != _state():
        raise InputError(
            f"{out} was begun by clsp {json.loads(found).get('clsp')}, this is {_state()['clsp']}; choose another --out"
        )

    # Another recipe's; runs and seeds may join it
    for path, recipe in recipes.items():
        begun = load_recipe(str(path)) if path.exists() else None
        if begun and _settings(begun) != _settings(recipe):
            raise InputError(
                f"{out} holds the work of another recipe ({path}); choose another --out"
            )


def _state() -> dict[str, str]:
    return {"clsp": version("clsp")}


def _claim(out: Path, recipes: dict[Path, Recipe]) -> None:
    """Write down what the folder holds."""
    write_file(out / STATE, json.dumps(_state()).encode())
    for path, recipe in recipes.items():
        recipe.save(path)


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return what makes a recipe's work this work: the settings as plans and runs record them."""
    return recipe.recorded(leave_out=("reproduce",))


def _cost_line(stages: list[Stage], costs: dict[str, float]) -> str:
    """Return the seconds of every kind of stage in a line."""
    sums: dict[str, float] = {}
    for stage in stages:
        if stage.name in costs:
            sums[stage.kind] = sums.get(stage.kind, 0) + costs[stage.name]

    return ", ".join(f"{kind} {spent:.0f}" for kind, spent in sums.items())
