"""The stages of `clsp reproduce`: the other commands with their dependencies, and nothing else."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...core import InputError
from ...core.run_name import LABEL_PATTERN, NO_SOURCE, WITH_CANDIDATES, RunName

SOURCES = ("augmentation", "inflation", "shards")
DDAE = "ddae"
"""The run that trains nothing: the diffusion model's own features, evaluated once."""
UNET = "unet"
"""The encoder of `reproduce.scores` that stands for the diffusion model of this work."""

Kind = Literal["diffusion", "shards", "pretrain", "linear-eval", "knn", "transfer", "other"]


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
    """Read a run's name, `simclr`, `mocov2plus+shards`, `simclr+shards+labels`, `simclr+shards@m2`, ….

    Raises:
        InputError: it is none, or has no such source.
    """
    run = RunName.parse(name)
    is_label = re.search(LABEL_PATTERN, run.label) is not None
    is_known = run.source in (NO_SOURCE, *SOURCES) and str(run) == name and is_label
    is_trained = run.method != DDAE or name == DDAE
    has_candidates = run.source in WITH_CANDIDATES
    if not is_known or not is_trained or (run.by_labels and not has_candidates):
        raise InputError(
            f"reproduce.runs: {name}; expected a method, METHOD+SOURCE with {', '.join(SOURCES)}, behind "
            f"{' and '.join(WITH_CANDIDATES)} perhaps +labels, last perhaps @ and a label of [runs], or {DDAE}"
        )

    return run


def run_recipe(out: Path, name: str) -> Path:
    """Return the path of the recipe resolved for a run: its method's, or its own where it has a label."""
    run = parse_run(name)
    return out / "recipes" / f"{name if run.label else run.method}.toml"


def pipeline(
    out: Path,
    runs: Sequence[str],
    seeds: int,
    parts: int,
    diffusion: str = "",
    scores: Mapping[str, str] | None = None,
    transfers: bool = False,
) -> list[Stage]:
    """List the stages from images to report: a pretraining and its evaluations per run name and seed.

    Args:
        parts: of the making of the shard set, which are made at a time.
        diffusion: the recipe's own diffusion model; empty: one is trained.
        scores: names of scores that runs choose candidates by, each with its encoder; all are made before any run, for
            every run records the set's ID.
        transfers: evaluate by transfer, too.
    """
    shards = str(out / "shards")
    recipe = ("--recipe", str(out / "recipe.toml"))

    # The diffusion model, the set, and the scores that runs choose candidates by
    own = diffusion or str(out / "diffusion")
    made = _set_stages(out, recipe, shards, parts)
    scored = _score_stages(scores or {}, own, recipe, shards)
    stages = [*made, *scored]
    before_runs = ("verify", *(stage.name for stage in scored))

    # The runs and their evaluations
    folders = []
    evaluations: list[str] = []
    if DDAE in runs:
        folder = out / "pretrain" / f"{DDAE}-s0"
        folders.append(str(folder))
        probes = _ddae_stages(recipe, own, folder, transfers)
        stages += probes
        evaluations += [probe.name for probe in probes]

    trained = [name for name in runs if name != DDAE]
    for seed in range(seeds):
        for name in trained:
            folder = out / "pretrain" / f"{name}-s{seed}"
            folders.append(str(folder))
            chosen = _run_settings(out, name, seed)
            command = ("pretrain", *chosen, "--shards", shards, "--out", str(folder))
            training = Stage(folder.name, command, before_runs, "pretrain")
            probes = _probe_stages(chosen, folder, transfers)
            stages += [training, *probes]
            evaluations += [probe.name for probe in probes]

    # Table, measures of the set for the page, and the page
    evaluated = tuple(evaluations)
    command = ("compare", *folders, "--out", str(out))
    stages.append(Stage("compare", command, evaluated))
    name = trained[0].replace("+", "-")
    encoder = str(out / "pretrain" / f"{trained[0]}-s0")
    command = ("shards", "score", shards, "--encoder", encoder, "--name", name, *recipe)
    stages.append(Stage("score", command, evaluated))
    command = ("report", str(out), "--out", str(out / "report.html"))
    stages.append(Stage("report", command, ("compare", "score")))

    return stages


def _set_stages(out: Path, recipe: tuple[str, ...], shards: str, parts: int) -> list[Stage]:
    """List the stages from images to a verified set, and its contact sheet."""
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

    return stages


def _score_stages(
    scores: Mapping[str, str], diffusion: str, recipe: tuple[str, ...], shards: str
) -> list[Stage]:
    """List the stages that make scores, each by its encoder."""
    stages = []
    for name, encoder in scores.items():
        encoder = f"unet:{diffusion}" if encoder == UNET else encoder
        command = ("shards", "score", shards, "--encoder", encoder, "--name", name, *recipe)
        stages.append(Stage(f"score-{name}", command, ("verify",)))

    return stages


def _ddae_stages(
    recipe: tuple[str, ...], diffusion: str, folder: Path, transfers: bool
) -> list[Stage]:
    """List the evaluations of the diffusion model's own features."""
    stages = []
    for probe in _probes(transfers):
        checkpoint = f"unet:{diffusion}@chosen"
        command = (probe, *recipe, "--checkpoint", checkpoint, "--out", str(folder))
        stages.append(Stage(f"{probe}-{folder.name}", command, ("diffusion",), probe))

    return stages


def _run_settings(out: Path, name: str, seed: int) -> tuple[str, ...]:
    """Return the options that every command of a run has: its recipe, source and seed."""
    source = f"pretrain.synthetic.source={parse_run(name).source}"
    recipe = ("--recipe", str(run_recipe(out, name)))
    return (*recipe, "--set", source, "--set", f"pretrain.seed={seed}")


def _probe_stages(chosen: tuple[str, ...], folder: Path, transfers: bool) -> list[Stage]:
    """List the evaluations of a run, once it is trained."""
    stages = []
    for probe in _probes(transfers):
        command = (probe, *chosen, "--checkpoint", str(folder), "--out", str(folder))
        stages.append(Stage(f"{probe}-{folder.name}", command, (folder.name,), probe))

    return stages


def _probes(transfers: bool) -> list[Kind]:
    """List the commands that evaluate a run."""
    probes: list[Kind] = ["linear-eval", "knn"]
    if transfers:
        probes.append("transfer")

    return probes
