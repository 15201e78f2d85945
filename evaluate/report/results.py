"""Result files: one JSON per evaluation, with everything that it depends on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...core import InputError, canonical_json, run_stamp, write_file
from ..features.checkpoint import RUN, checkpoint_digest

PACKAGES = ("clsp", "torch", "timm")
TASKS = ("linear", "sweep", "knn", "transfer")


def quality_path(root: Path, name: str) -> Path:
    """The file, beside a set, for the measures of the whole set that go with its scores of that name."""
    return root.absolute().with_name(f"{root.absolute().name}-quality-{name}.json")


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
        checkpoint: the evaluated run or model.
        recipe: the resolved recipe.
        seed: of the evaluation.
        facts: further entries of the file.
    """
    run = json.loads((checkpoint / RUN).read_text()) if (checkpoint / RUN).exists() else {}
    content = {
        "task": task,
        "result": dict(result),
        "name": run.get("name", checkpoint.name),
        "seed": run.get("seed", 0),
        "evaluation_seed": seed,
        "set": run.get("set"),
        "data": run.get("data"),
        "checkpoint": checkpoint_digest(checkpoint),
        **facts,
        "recipe": dict(recipe),
        **run_stamp(*PACKAGES),
    }
    path = out / f"{task}.json"
    write_file(path, canonical_json(content))

    return path


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The result files in a run's folder.

    Raises:
        InputError: there is none, or one is damaged.
    """
    paths = [folder / f"{task}.json" for task in TASKS if (folder / f"{task}.json").exists()]
    if not paths:
        raise InputError(
            f"{folder} holds no results; run clsp linear-eval or clsp knn with --out {folder} first"
        )

    try:
        return [json.loads(path.read_text()) for path in paths]
    except ValueError as error:
        raise InputError(
            f"{folder}: a result file is not JSON ({error}); run the evaluation again"
        ) from error
