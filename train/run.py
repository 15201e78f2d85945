"""The folder of a run: whose it is, its log, and the backbone that comes out of it."""

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..core import (
    RECIPE,
    InputError,
    canonical_json,
    differences,
    owner_of,
    saving,
    set_aside,
    write_file,
)
from ..shards import ShardSet
from ..shards.format.layout import scores_path
from .backbone import check_backbone, initial_digest, save_backbone
from .checkpoint import checkpoint_path, checkpoints
from .config import PretrainConfig
from .methods import Method
from .run_record import recorded_name

RUN, LOG, BACKBONE = "run.json", "log.jsonl", "backbone"
TRACKED = "tensorboard"
"""The folder of TensorBoard's files in the run's own, and the name of the project for other trackers."""

UNESSENTIAL = {
    "workers",
    "cache",
    "trackers",
    "knn_epochs",
    "checkpoint_epochs",
    "keep_checkpoints",
}
"""Settings that do not make a run another one."""


def check_run(shards: ShardSet, config: PretrainConfig, out: Path) -> bool:
    """Return True if `out` holds the finished run of these settings on this set, False if it can start or go on there.

    Raises:
        InputError: it holds another run (naming what differs) or something else, or the backbone of a run that is to
            begin does not take the set's images.
    """
    _check_trackers(config)
    check_size(shards, config)
    finished = check_folder(shards, config, out)
    if _is_without_result(out):
        check_backbone(config, config.view_size(shards.size))

    return finished


def check_size(shards: ShardSet, config: PretrainConfig) -> None:
    """Raise InputError where views are to be larger than the set's images."""
    if config.size > shards.size:
        raise InputError(
            f"views of {config.size} pixels are asked for (pretrain.size or anchors.size), the images of {shards.root} "
            f"have {shards.size}x{shards.size}; expected at most these, or a set with a larger anchors.size"
        )


def with_view_size(config: PretrainConfig, shards: ShardSet, anchors_size: int) -> PretrainConfig:
    """Return the settings with the size of the views decided: `pretrain.size`, else the recipe's `anchors.size`.

    The set's own size is left as 0, so that runs on all of a set's pixels are recorded as they were before.
    """
    size = config.size or anchors_size
    return config.model_copy(update={"size": 0 if size == shards.size else size})


def check_folder(
    shards: ShardSet, config: PretrainConfig, out: Path, may_replace: bool = True
) -> bool:
    """Return as `check_run` does, without trying the backbone.

    Args:
        may_replace: another run that came to no checkpoint, not finite or killed before, makes way.

    Raises:
        InputError: the folder holds another run (naming what differs) or something else.
    """
    content = owner_of(out, RUN, "run of clsp pretrain")
    if content is None:
        return False

    run = _identity(shards, config)
    different = _differences(content, run)
    if different and not (may_replace and _is_without_result(out)):
        # More epochs for a run of the schedule wsd
        shorter = shorter_run(content, run)
        if shorter is None:
            raise InputError(
                f"{out} holds another run ({'; '.join(different)}); choose another --out{_advice(content, run)}"
            )
        if not (out / BACKBONE).exists() or stable_checkpoint(shards, config, shorter, out):
            return False
        raise InputError(
            f"{out} has no checkpoint from before its decay any more, from which a longer run could go on; "
            "choose another --out, and start it from this one with pretrain.init"
        )

    return (out / BACKBONE).exists()


def shorter_run(content: bytes, run: dict[str, Any]) -> int | None:
    """Return the epochs of the run that `run.json` names, if `run` is that very run with more of them; else None."""
    found = json.loads(content)
    epochs = found.get("pretrain", {}).get("epochs", 0)
    settings = run["pretrain"]
    if settings.get("schedule") != "wsd" or not 0 < epochs < settings["epochs"]:
        return None

    as_short = {**run, "pretrain": {**settings, "epochs": epochs}}
    return None if _differences(content, as_short) else epochs


def stable_checkpoint(
    shards: ShardSet, config: PretrainConfig, epochs: int, out: Path
) -> Path | None:
    """Return the last checkpoint from before the decay of a run of the schedule wsd with so many epochs."""
    per_epoch = len(shards) // config.batch_size
    last_step = (epochs - config.decay_epochs) * per_epoch
    stable = [path for path in checkpoints(out) if path <= checkpoint_path(out, last_step)]
    return stable[-1] if stable else None


def _advice(content: bytes, run: dict[str, Any]) -> str:
    """Return what to do where the epochs alone are more, and the schedule is a cosine over all of them."""
    settings = run["pretrain"]
    epochs = json.loads(content).get("pretrain", {}).get("epochs", 0)
    is_longer = "schedule" not in settings and 0 < epochs < settings["epochs"]
    if not is_longer or _differences(content, {**run, "pretrain": {**settings, "epochs": epochs}}):
        return ""
    return (
        "; the rate of a cosine depends on its length: start another run from this one with pretrain.init, "
        "and plan runs that may grow with pretrain.schedule=wsd"
    )


def layers_used(out: Path) -> list[str] | None:
    """Return the layers that the run in `out` reads, or None where it can begin anew: a set may have grown since."""
    if not (out / RUN).exists() or _is_without_result(out):
        return None
    return (
        sorted(
            json.loads((out / RUN).read_text(encoding="utf-8")).get("data", {}).get("layers", {})
        )
        or None
    )


def _check_trackers(config: PretrainConfig) -> None:
    absent = [name for name in config.trackers if importlib.util.find_spec(name) is None]
    if absent:
        raise InputError(
            f"pretrain.trackers: {', '.join(absent)} is not installed; pip install it or leave it out"
        )


def _identity(shards: ShardSet, config: PretrainConfig) -> dict[str, Any]:
    """Return the facts that make a run this run and no other."""
    identity = {
        "name": config.run_name,
        "seed": config.seed,
        "data": shards.identity,
        "pretrain": config.recorded(leave_out={*UNESSENTIAL, "init"}),
    }
    if config.init:
        identity["init"] = initial_digest(config.init)

    # A set scored elsewhere may have other scores under this name
    if config.goes_by_measure:
        scores = shards.manifest.files.get(scores_path(Path(), config.synthetic.scores).as_posix())
        if scores:
            identity["scores"] = scores.sha256

    return identity


def _differences(content: bytes, run: dict[str, Any]) -> list[str]:
    """Return how the run that a file `run.json` names differs from `run`."""
    found = json.loads(content)
    there = {key: found.get(key) for key in run} | {"name": recorded_name(found)}
    if "scores" not in found:  # of a version that did not record them
        run = {key: value for key, value in run.items() if key != "scores"}
        there.pop("scores", None)

    return differences(there, run)


def _is_without_result(out: Path) -> bool:
    return not checkpoints(out) and not (out / BACKBONE).exists()


def claim_folder(shards: ShardSet, config: PretrainConfig, out: Path, recipe: bytes) -> None:
    """Write down whose the folder is; what another run has left there was found to be without a result."""
    run = _identity(shards, config)
    path = out / RUN
    is_new = not path.exists()
    if not is_new and _differences(path.read_bytes(), run):
        shorter = shorter_run(path.read_bytes(), run)
        if shorter is None or _is_without_result(out):
            set_aside(out, (RECIPE, LOG, TRACKED), RUN)
        else:
            _lengthen(shards, config, shorter, out)
        is_new = True

    if is_new:
        names = ("clsp", "torch", "timm", "kornia", "accelerate")
        versions = {name: version(name) for name in names}
        facts = {"set": shards.set_id, "versions": versions}
        write_file(path, canonical_json({**run, **facts}))

    if recipe:
        write_file(out / RECIPE, recipe)


def _lengthen(shards: ShardSet, config: PretrainConfig, epochs: int, out: Path) -> None:
    """Let a run of so many epochs go on from before its decay; the backbone that it came to is kept beside."""
    last = stable_checkpoint(shards, config, epochs, out)
    for path in checkpoints(out):
        if last is None or path > last:
            path.unlink()

    if (out / BACKBONE).exists():
        (out / BACKBONE).rename(out / f"{BACKBONE}-epoch-{epochs}")


def read_rows(out: Path, step: int) -> list[dict[str, Any]]:
    """Return the log's rows up to `step`: a resumed run writes the later ones again."""
    if not (out / LOG).exists():
        return []
    rows = [json.loads(line) for line in (out / LOG).read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["step"] <= step]


def export_backbone(method: Method, config: PretrainConfig, size: int, out: Path) -> None:
    """Save the backbone in timm's form; the folder's presence means «finished»."""
    staging = out / f".{BACKBONE}.tmp"
    with saving(staging):
        backbone = method.backbone.to(memory_format=torch.contiguous_format)
        save_backbone(backbone, config, size, staging)
    staging.rename(out / BACKBONE)
