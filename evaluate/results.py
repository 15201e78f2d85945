"""Result files: one JSON per evaluation, with everything that it depends on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..shards import InputError, canonical_json, run_stamp, sha256_file, write_file

RUN = "run.json"
PACKAGES = ("clsp", "torch", "timm")
TASKS = ("linear", "sweep", "knn", "transfer")


def backbone_folder(checkpoint: Path) -> Path:
    """The backbone of a run of `clsp pretrain`, or the folder itself if it is a timm model.

    Raises:
        InputError: neither is there.
    """
    for folder in (checkpoint / "backbone", checkpoint):
        if (folder / "config.json").exists() and (folder / "model.safetensors").exists():
            return folder
    if (checkpoint / RUN).exists():
        raise InputError(f"{checkpoint} is not finished; run clsp pretrain again to complete it")
    raise InputError(f"{checkpoint} holds no checkpoint; give a folder of clsp pretrain or of a timm model")


def checkpoint_digest(checkpoint: Path) -> str:
    """SHA-256 of the weights of a run's backbone or of a timm model's folder."""
    return sha256_file(backbone_folder(checkpoint) / "model.safetensors")


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
        raise InputError(f"{folder} holds no results; run clsp linear-eval or clsp knn with --out {folder} first")
    try:
        return [json.loads(path.read_text()) for path in paths]
    except ValueError as error:
        raise InputError(f"{folder}: a result file is not JSON ({error}); run the evaluation again") from error
