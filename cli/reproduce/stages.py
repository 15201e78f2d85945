"""The stages of `clsp reproduce`: the other commands with their dependencies, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...core import InputError

SOURCES = ("none", "augmentation", "inflation", "shards")


@dataclass(frozen=True)
class Stage:
    """A command line of `clsp` that starts when the stages named in `after` are finished."""

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    alone: bool = False
    """True if nothing else can run beside it, so that it gets every core."""


def parse_run(name: str) -> tuple[str, str]:
    """Split a run's name, `mocov2plus+shards`, into (method, source); the source of `simclr` is `none`.

    Raises:
        InputError: no such source.
    """
    method, plus, source = name.partition("+")
    if source not in SOURCES[1:] and plus:
        raise InputError(
            f"reproduce.runs: {name}; expected a method, or METHOD+SOURCE with {', '.join(SOURCES[1:])}"
        )

    return method, source or "none"


def method_recipe(out: Path, method: str) -> Path:
    """Return the path of the recipe resolved for a method."""
    return out / "recipes" / f"{method}.toml"


def pipeline(out: Path, runs: Sequence[str], seeds: int, parts: int) -> list[Stage]:
    """List the stages from images to report: a pretraining and its evaluations per run name and seed."""
    shards = str(out / "shards")
    with_recipe = ("--recipe", str(out / "recipe.toml"))
    training = ("diffusion", "train", *with_recipe, "--out", str(out / "diffusion"))
    stages = [Stage("diffusion", training, alone=True)]
    making = ("shards", "make", *with_recipe, "--out", shards)
    makes = [
        Stage(f"shards-{part}", (*making, "--part", f"{part}/{parts}"), ("diffusion",))
        for part in range(parts)
    ]
    stages += makes
    stages.append(
        Stage(
            "verify", ("shards", "verify", shards, "--deep"), tuple(stage.name for stage in makes)
        )
    )
    preview = ("shards", "preview", shards, "--out", str(out / "contact-sheet.png"))
    stages.append(Stage("preview", preview, ("verify",)))
    folders = []

    for seed in range(seeds):
        for name in runs:
            folder = out / "pretrain" / f"{name}-s{seed}"
            stages += _run_stages(out, name, seed, shards, folder)
            folders.append(str(folder))

    evaluated = tuple(
        stage.name for stage in stages if stage.name.startswith(("linear-eval-", "knn-"))
    )
    stages.append(Stage("compare", ("compare", *folders, "--out", str(out)), evaluated))
    encoder = Path(folders[0])
    scored = (
        "shards",
        "score",
        shards,
        "--encoder",
        str(encoder),
        "--name",
        runs[0].replace("+", "-"),
        *with_recipe,
    )
    stages.append(Stage("score", scored, evaluated))  # only now: every run records the set's ID
    stages.append(
        Stage(
            "report", ("report", str(out), "--out", str(out / "report.html")), ("compare", "score")
        )
    )

    return stages


def _run_stages(out: Path, name: str, seed: int, shards: str, folder: Path) -> list[Stage]:
    method, source = parse_run(name)
    label = folder.name
    recipe = ("--recipe", str(method_recipe(out, method)))
    chosen = (
        *recipe,
        "--set",
        f"pretrain.synthetic.source={source}",
        "--set",
        f"pretrain.seed={seed}",
    )
    run = ("pretrain", *chosen, "--shards", shards, "--out", str(folder))
    stages = [Stage(label, run, ("verify",))]

    for task in ("linear-eval", "knn"):
        evaluation = (task, *chosen, "--checkpoint", str(folder), "--out", str(folder))
        stages.append(Stage(f"{task}-{label}", evaluation, (label,)))

    return stages
