"""Write and read result files: one JSON per evaluation, with everything that it depends on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ...core import InputError, canonical_json, first_fault, run_stamp, write_file
from ..features.checkpoint import checkpoint_digest, is_unet_name, read_run, run_name
from ..probes.registry import FewLabels, Figures, tasks

PACKAGES = ("clsp", "torch", "timm")
DDAE = "ddae"
"""The name of the row of a diffusion U-Net's own features."""


class TransferredSet(BaseModel):
    """Holds what a result file of transfer says of one data set; the probe's own figures lie beside it."""

    model_config = ConfigDict(extra="allow", frozen=True)

    set: Any = None
    """The keys of the data set as the recipe declares it."""


class RunResult(BaseModel):
    """Holds one evaluation of a run, as its result file has it.

    Keys that an older version did not write have a default, and those of a newer version are kept.

    >>> result = RunResult(task="knn", result={"k20": 71.5, "map": {}}, name="simclr", seed=1)
    >>> result.figures
    {'knn.k20': 71.5}
    >>> result.content()
    {'task': 'knn', 'result': {'k20': 71.5, 'map': {}}, 'name': 'simclr', 'seed': 1}
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    task: str
    """The probe that it is of; see `evaluate/probes/registry.py`."""
    result: Figures
    """Accuracies in percent, their intervals and facts about them."""
    name: str
    """The name of the run, the same for all seeds."""
    seed: int
    """Of the pretraining."""
    evaluation_seed: int = 0
    set: str | None = None
    """The ID of the run's shard set."""
    data: Any = None
    """The identity of the images of that set, which stays when it gets scores or a layer."""
    checkpoint: str = ""
    """The digest of the evaluated weights."""
    precision: str | None = None
    """Of feature extraction."""
    sets: Mapping[str, TransferredSet] = {}
    """Per data set what transfer found."""
    recipe: dict[str, Any] | None = None
    """The resolved recipe."""
    versions: Mapping[str, str] = {}
    finished: str = ""

    @property
    def figures(self) -> dict[str, int | float]:
        """Return the plain numbers of the result, each by its metric's name, `TASK.FIGURE`."""
        numbers = {}
        for name, value in self.result.items():
            if isinstance(value, int | float):
                numbers[f"{self.task}.{name}"] = value

        return numbers

    @property
    def few_labels(self) -> FewLabels | None:
        """Return what the result says of its figures with few labels, None without any."""
        found = self.result.get("few_labels")
        return FewLabels.model_validate(found) if found else None

    @property
    def data_identity(self) -> Any:
        """Return the identity of the run's images; the ID of its set in files that lack it."""
        return self.data or self.set

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section of the recipe, empty without one."""
        recipe = self.recipe or {}
        return recipe.get(name, {})

    def content(self) -> Mapping[str, Any]:
        """Return what the file holds: the keys that were given, and no default."""
        return self.model_dump(exclude_unset=True)


def quality_path(root: Path, name: str) -> Path:
    """Return the file, beside a set, for the measures of the whole set that go with its scores of that name."""
    return root.absolute().with_name(f"{root.absolute().name}-quality-{name}.json")


def result_path(folder: Path, task: str) -> Path:
    """Return the file of a probe's result in a run's folder."""
    return folder / f"{task}.json"


def write_result(
    out: Path,
    task: str,
    result: Mapping[str, Any],
    checkpoint: Path,
    recipe: Mapping[str, Any],
    seed: int,
    **facts: Any,
) -> Path:
    """Write `{task}.json` and return its path.

    Args:
        result: accuracies in percent.
        checkpoint: the evaluated run or model, or the name of a U-Net's features.
        recipe: the resolved recipe.
        seed: of the evaluation.
        facts: further entries of the file.
    """
    # The run that made the checkpoint, where it is one
    run = read_run(checkpoint) or {}
    is_unet = is_unet_name(str(checkpoint))
    if is_unet:
        from ..features.encoder import encoder_digest

        digest = encoder_digest(checkpoint)
    else:
        digest = checkpoint_digest(checkpoint)

    # What its row is called
    name = DDAE if is_unet else checkpoint.name
    if run:
        name = run_name(run)

    # The result, with everything that it depends on
    content = RunResult(
        task=task,
        result=dict(result),
        name=name,
        seed=run.get("seed", 0),
        evaluation_seed=seed,
        set=run.get("set"),
        data=run.get("data"),
        checkpoint=digest,
        recipe=dict(recipe),
        **facts,
        **run_stamp(*PACKAGES),
    )
    path = result_path(out, task)
    write_file(path, canonical_json(content.content()))

    return path


def read_results(folder: Path) -> list[RunResult]:
    """Read the result files in a run's folder, each under the name that the run has today.

    Raises:
        InputError: there is none, or one is damaged.
    """
    paths = [result_path(folder, task) for task in tasks()]
    paths = [path for path in paths if path.exists()]
    if not paths:
        raise InputError(
            f"{folder} holds no results; run clsp linear-eval or clsp knn with --out {folder} first"
        )

    run = read_run(folder)
    results = []
    for path in paths:
        result = _read_result(path)
        if run and result.name == run["name"]:
            result = result.model_copy(update={"name": run_name(run)})
        results.append(result)

    return results


def _read_result(path: Path) -> RunResult:
    try:
        return RunResult.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise InputError(
            f"{path} is no result ({first_fault(error)}); run the evaluation again"
        ) from error
    except ValueError as error:
        raise InputError(
            f"{path} is no result, for it is not JSON ({error}); run the evaluation again"
        ) from error
