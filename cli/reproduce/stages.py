"""The stages of `clsp reproduce`: the other commands with their dependencies, and nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core import InputError
from ...core.run_name import NO_SOURCE, WITH_CANDIDATES, RunName

SOURCES = ("augmentation", "inflation", "shards")

Kind = Literal["diffusion", "shards", "pretrain", "linear-eval", "knn", "other"]


@dataclass(frozen=True)
class Stage:
    """Holds a command line of `clsp` that starts when the stages named in `after` are finished."""

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    kind: Kind = "other"
    """The entry of the costs that it counts into."""
    alone: bool = False
    """True if nothing else can run beside it, so that it gets every core."""


def parse_run(name: str) -> RunName:
    """Read a run's name, `simclr`, `mocov2plus+shards`, `simclr+shards+labels`, ….

    Raises:
        InputError: it is none, or has no such source.
    """
    run = RunName.parse(name)
    is_known = run.source in (NO_SOURCE, *SOURCES) and str(run) == name
    if not is_known or (run.by_labels and run.source not in WITH_CANDIDATES):
        raise InputError(
            f"reproduce.runs: {name}; expected a method, or METHOD+SOURCE with {', '.join(SOURCES)}; behind "
            f"{' and '.join(WITH_CANDIDATES)} may stand +labels"
        )

    return run


def method_recipe(out: Path, method: str) -> Path:
    """Return the path of the recipe resolved for a method."""
    return out / "recipes" / f"{method}.toml"


def pipeline(out: Path, runs: Sequence[str], seeds: int, parts: int) -> list[Stage]:
    """List the stages from images to report: a pretraining and its evaluations per run name and seed."""
    shards = str(out / "shards")
    recipe = ("--recipe", str(out / "recipe.toml"))

    # The diffusion model
    command = ("diffusion", "train", *recipe, "--out", str(out / "diffusion"))
    stages = [Stage("diffusion", command, kind="diffusion", alone=True)]

    # The shard set
    makes = []
    for part in range(parts):
        command = ("shards", "make", *recipe, "--out", shards, "--part", f"{part}/{parts}")
        makes.append(Stage(f"shards-{part}", command, ("diffusion",), "shards"))
    stages += makes

    command = ("shards", "verify", shards, "--deep")
    stages.append(Stage("verify", command, tuple(stage.name for stage in makes)))
    command = ("shards", "preview", shards, "--out", str(out / "contact-sheet.png"))
    stages.append(Stage("preview", command, ("verify",)))

    # The runs and their evaluations
    folders = []
    evaluations: list[str] = []
    for seed in range(seeds):
        for name in runs:
            folder = out / "pretrain" / f"{name}-s{seed}"
            folders.append(str(folder))
            training, *probes = _run_stages(out, name, seed, shards, folder)
            stages += [training, *probes]
            evaluations += [probe.name for probe in probes]

    # Table, measures of the set, and page. The set is scored only now: every run records the set's ID.
    evaluated = tuple(evaluations)
    command = ("compare", *folders, "--out", str(out))
    stages.append(Stage("compare", command, evaluated))
    scores = runs[0].replace("+", "-")
    command = ("shards", "score", shards, "--encoder", folders[0], "--name", scores, *recipe)
    stages.append(Stage("score", command, evaluated))
    command = ("report", str(out), "--out", str(out / "report.html"))
    stages.append(Stage("report", command, ("compare", "score")))

    return stages


def _run_stages(out: Path, name: str, seed: int, shards: str, folder: Path) -> list[Stage]:
    """List a run's pretraining and its evaluations."""
    run = parse_run(name)
    label = folder.name
    recipe = ("--recipe", str(method_recipe(out, run.method)))
    changes = ("--set", f"pretrain.synthetic.source={run.source}", "--set", f"pretrain.seed={seed}")
    chosen = (*recipe, *changes)

    command = ("pretrain", *chosen, "--shards", shards, "--out", str(folder))
    stages = [Stage(label, command, ("verify",), "pretrain")]

    probes: tuple[Kind, ...] = ("linear-eval", "knn")
    for probe in probes:
        command = (probe, *chosen, "--checkpoint", str(folder), "--out", str(folder))
        stages.append(Stage(f"{probe}-{label}", command, (label,), probe))

    return stages
