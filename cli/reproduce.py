"""`clsp reproduce`: the pipeline of a recipe as a plain list of the other commands with their dependencies."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from ..shards import Anchors, InputError, StopRequested, WorkError, owner_of, write_file
from .main import BAD_INPUT, STOPPED
from .options import out_option, recipe_options
from .progress import say
from .recipe import load_recipe

SOURCES = ("none", "augmentation", "shards")
SCORES = "simclr"
"""Name of the scores, after the run whose features they are measured in."""
SECONDS_BETWEEN_POLLS = 0.1


@dataclass(frozen=True)
class Stage:
    """A command line of `clsp` that starts when the stages named in `after` are finished."""

    name: str
    arguments: tuple[str, ...]
    after: tuple[str, ...] = ()
    alone: bool = False
    """True if nothing else can run beside it, so that it gets every core."""


def pipeline(out: Path, recipe: str, seeds: int, parts: int) -> list[Stage]:
    """The stages from images to report: a run per third view (none, augmentation, shards) and seed."""
    shards, with_recipe = str(out / "shards"), ("--recipe", recipe)
    stages = [Stage("diffusion", ("diffusion", "train", *with_recipe, "--out", str(out / "diffusion")), alone=True)]
    makes = [
        Stage(
            f"shards-{part}",
            ("shards", "make", *with_recipe, "--out", shards, "--part", f"{part}/{parts}"),
            ("diffusion",),
        )
        for part in range(parts)
    ]
    stages += makes
    stages.append(Stage("verify", ("shards", "verify", shards, "--deep"), tuple(stage.name for stage in makes)))
    preview = ("shards", "preview", shards, "--out", str(out / "contact-sheet.png"))
    stages.append(Stage("preview", preview, ("verify",)))
    folders, evaluations = [], []
    for seed in range(seeds):
        for source in SOURCES:
            name = f"simclr-s{seed}" if source == "none" else f"simclr+{source}-s{seed}"
            folder = str(out / "pretrain" / name)
            chosen = ("--set", f"pretrain.synthetic.source={source}", "--set", f"pretrain.seed={seed}")
            run = ("pretrain", *with_recipe, *chosen, "--shards", shards, "--out", folder)
            stages.append(Stage(name, run, ("verify",)))
            for task in ("linear-eval", "knn"):
                evaluation = (task, *with_recipe, *chosen, "--checkpoint", folder, "--out", folder)
                stages.append(Stage(f"{task}-{name}", evaluation, (name,)))
                evaluations.append(f"{task}-{name}")
            folders.append(folder)
    stages.append(Stage("compare", ("compare", *folders, "--out", str(out)), tuple(evaluations)))
    encoder = str(out / "pretrain" / "simclr-s0")
    score = ("shards", "score", shards, "--encoder", encoder, "--name", SCORES, *with_recipe)
    stages.append(Stage("score", score, tuple(evaluations)))  # only now: every run records the set's ID
    stages.append(Stage("report", ("report", str(out), "--out", str(out / "report.html")), ("compare", "score")))
    return stages


class Driver:
    """Runs stages as processes, several at a time, and remembers which are finished in `OUT/stages/`."""

    def __init__(self, out: Path, stages: Sequence[Stage], jobs: int):
        self.out, self.stages, self.jobs = out, stages, jobs
        self.finished: set[str] = set()
        for stage in stages:  # in the order of their dependencies: what follows a changed stage is done again
            if set(stage.after) <= self.finished and self._recorded(stage) == list(stage.arguments):
                self.finished.add(stage.name)
        self.running: dict[str, tuple[Stage, subprocess.Popen[bytes], float]] = {}

    def run(self) -> None:
        """Run what is not finished; a failing stage ends the work, and everything finished is kept."""
        try:
            while len(self.finished) < len(self.stages):
                self._start_ready()
                time.sleep(SECONDS_BETWEEN_POLLS)
                for stage, process, started in list(self.running.values()):
                    if process.poll() is not None:
                        self._finish(stage, process.returncode, time.monotonic() - started)
        finally:
            for _, process, _ in self.running.values():
                process.terminate()
            for _, process, _ in self.running.values():
                process.wait()

    def _start_ready(self) -> None:
        for stage in self.stages:
            ready = set(stage.after) <= self.finished
            if len(self.running) < self.jobs and ready and stage.name not in self.finished | set(self.running):
                self.running[stage.name] = (stage, self._start(stage), time.monotonic())

    def _start(self, stage: Stage) -> "subprocess.Popen[bytes]":
        threads = max(1, (os.cpu_count() or 1) // (1 if stage.alone else self.jobs))
        log = self._log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("wb") as file:
            command = [sys.executable, "-m", "clsp.cli", *stage.arguments]
            return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)

    def _finish(self, stage: Stage, code: int, seconds: float) -> None:
        del self.running[stage.name]
        if code:
            raise _failure(stage, code, self._log(stage))
        self.finished.add(stage.name)
        write_file(
            self._record(stage), json.dumps({"arguments": stage.arguments, "seconds": round(seconds, 1)}).encode()
        )
        say(f"[{len(self.finished):>2}/{len(self.stages)}] {stage.name} ({seconds:.0f} s)")

    def _recorded(self, stage: Stage) -> list[str] | None:
        path = self._record(stage)
        return json.loads(path.read_text())["arguments"] if path.exists() else None

    def _record(self, stage: Stage) -> Path:
        return self.out / "stages" / f"{stage.name}.json"

    def _log(self, stage: Stage) -> Path:
        return self.out / "logs" / f"{stage.name}.log"


def _failure(stage: Stage, code: int, log: Path) -> Exception:
    """The error of a stage, which ends the driver with the stage's own exit code."""
    lines = log.read_text().strip().splitlines() or [""]
    if code == STOPPED:
        return StopRequested()
    kind = InputError if code == BAD_INPUT else WorkError
    return kind(f"stage {stage.name}: {lines[-1].removeprefix('clsp: ')} (log: {log})")


@click.command(epilog="Example: clsp reproduce --recipe digits --out runs/demo")
@recipe_options
@out_option("Folder for everything; what is finished there is not done again.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Seeds per run name.")
@click.option("--jobs", default=2, show_default=True, type=click.IntRange(1), help="Stages that run at a time.")
def reproduce(recipe_name: str, overrides: tuple[str, ...], out: Path, seeds: int, jobs: int) -> None:
    """The whole pipeline of a recipe: diffusion, shards, pretraining without, with augmentation, with shards, table."""
    recipe = load_recipe(recipe_name, overrides)
    path = out / "recipe.toml"
    if owner_of(out, path.name, "work of clsp reproduce") and load_recipe(str(path)) != recipe:
        raise InputError(f"{out} holds the work of another recipe ({path}); choose another --out")
    Anchors(recipe.anchors)  # a missing data set is found here, before anything is written
    recipe.save(path)
    Driver(out, pipeline(out, str(path), seeds, jobs), jobs).run()
    log = out / "logs" / "compare.log"
    print(log.read_text().rstrip())
    say(f"report: {out / 'report.html'}, contact sheet: {out / 'contact-sheet.png'}")
