"""The folder of a run: whose it is, its log, and the backbone that comes out of it."""

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ..core import InputError, canonical_json, differences, owner_of, saving, write_file
from ..shards import ShardSet
from ..shards.format.layout import scores_path
from .backbone import check_backbone, save_backbone
from .config import PretrainConfig
from .methods import Method
from .run_record import recorded_name

RUN, LOG, BACKBONE = "run.json", "log.jsonl", "backbone"
UNESSENTIAL = {"workers", "trackers", "knn_epochs", "checkpoint_epochs", "keep_checkpoints"}
"""Settings that do not make a run another one."""


def check_run(shards: ShardSet, config: PretrainConfig, out: Path) -> bool:
    """Return True if `out` holds the finished run of these settings on this set, False if it can start or go on there.

    Raises:
        InputError: it holds another run (naming what differs) or something else, or the backbone of a run that is to
            begin does not take the set's images.
    """
    _check_trackers(config)
    finished = check_folder(shards, config, out)
    if not (out / RUN).exists():
        check_backbone(config, shards.size)

    return finished


def check_folder(shards: ShardSet, config: PretrainConfig, out: Path) -> bool:
    """Return as `check_run` does, without trying the backbone.

    Raises:
        InputError: the folder holds another run (naming what differs) or something else.
    """
    content = owner_of(out, RUN, "run of clsp pretrain")
    if content is None:
        return False

    different = _differences(content, _identity(shards, config))
    if different:
        raise InputError(f"{out} holds another run ({'; '.join(different)}); choose another --out")

    return (out / BACKBONE).exists()


def layers_used(out: Path) -> list[str] | None:
    """Return the layers that the run in `out` reads, or None where none has begun: a set may have grown since."""
    if not (out / RUN).exists():
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
        "pretrain": config.recorded(leave_out=UNESSENTIAL),
    }

    # A set scored elsewhere may have other scores under this name
    if config.goes_by_measure:
        scores = shards.manifest.files.get(scores_path(Path(), config.synthetic.scores).as_posix())
        if scores:
            identity["scores"] = scores.sha256

    return identity


def _differences(content: bytes, run: dict[str, Any]) -> list[str]:
    """Return in what the run of a record, maybe of an earlier version, is another one than `run`."""
    found = json.loads(content)
    here = {key: run[key] for key in run if key != "scores" or key in found}  # not always recorded
    there = {key: found.get(key) for key in here} | {"name": recorded_name(found)}
    return differences(there, here)


def claim_folder(shards: ShardSet, config: PretrainConfig, out: Path) -> None:
    """Write down whose the folder is, unless that is there already."""
    versions = {name: version(name) for name in ("clsp", "torch", "timm", "kornia", "accelerate")}
    if not (out / RUN).exists():
        facts = {"set": shards.set_id, "versions": versions}
        write_file(out / RUN, canonical_json({**_identity(shards, config), **facts}))


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
