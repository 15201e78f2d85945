"""Import candidates that were made elsewhere: an array like the one that the paper's authors publish becomes a set.

N: anchors, K: candidates per anchor, H, W: height and width.
"""

import math
from pathlib import Path
from tokenize import TokenError

import numpy as np

from ...core import InputError, Report, WorkError, run_stamp, sha256_file
from ..format.commits import read_commit
from ..format.config import ShardsConfig
from ..format.plan import DiffusionPlan, Plan, source_plan
from ..format.seal import seal_if_complete, unfinished_shards
from ..format.shard_size import with_records
from ..format.writer import Record, ShardWriter
from ..sources.images import ImageSource

MAX_CANDIDATES = 256
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def open_npy(path: Path, anchors: ImageSource) -> np.ndarray:
    """Map the candidates `(N, K, H, W, 3)` uint8 in `path`, in the order of the anchors, into memory to be read.

    Raises:
        InputError: not an .npy file, cut short, of another type or shape, or not of these anchors.
    """
    shape, dtype, start = _read_header(path)
    count = len(anchors)
    size = anchors.size
    expected = f"expected ({count}, K, {size}, {size}, 3) uint8 with K at most {MAX_CANDIDATES}"

    # The type and the shape.
    if dtype.hasobject:
        raise InputError(
            f"{path}: an array of Python objects, {expected}; save it with allow_pickle=False"
        )
    if dtype != np.uint8:
        raise InputError(
            f"{path}: an array of {dtype}, {expected}; convert it to bytes 0…255 before"
        )
    if len(shape) != 5 or shape[4] != 3:
        raise InputError(f"{path}: shape {shape}, {expected}; transpose it before")
    if shape[0] != count:
        raise InputError(
            f"{path}: candidates of {shape[0]} anchors, {expected}; check the recipe's [anchors]"
        )
    if shape[2:4] != (size, size):
        raise InputError(
            f"{path}: images of {shape[2]}x{shape[3]}, {expected}; set anchors.size or give another file"
        )
    if not 1 <= shape[1] <= MAX_CANDIDATES:
        raise InputError(
            f"{path}: {shape[1]} candidates per anchor, {expected}; cut the array before"
        )

    # The length of the file.
    found = path.stat().st_size
    needed = start + math.prod(shape)
    if found < needed:
        raise InputError(
            f"{path}: {found} bytes, expected {needed} for shape {shape}; fetch the file again"
        )

    return np.lib.format.open_memmap(path, mode="r")


def import_plan(
    path: Path, array_NKHWC: np.ndarray, anchors: ImageSource, shards: ShardsConfig
) -> Plan:
    """Return the plan of a set of imported candidates: the file's SHA-256 stands for the diffusion model."""
    as_many = shards.model_copy(update={"candidates": array_NKHWC.shape[1]})
    return Plan(
        source=source_plan(anchors),
        diffusion=DiffusionPlan(origin=f"imported from {path.name}", digest=sha256_file(path)),
        sampler={"imported": path.name},
        shards=with_records(as_many, anchors),
    )


def import_npy(
    root: Path,
    plan: Plan,
    anchors: ImageSource,
    array_NKHWC: np.ndarray,
    report: Report | None = None,
) -> str:
    """Write the unfinished shards of the set at `root`, whose plan is already there, and seal it.

    Args:
        report: called with (anchors done, anchors that were left).

    Returns:
        The set ID.

    Raises:
        WorkError: the set is sealed but damaged, or a shard was damaged meanwhile.
    """
    todo = unfinished_shards(root, plan, 0, range(plan.shard_count))
    total = sum(len(plan.shard_range(shard)) for shard in todo)
    done = 0

    for shard in todo:
        if read_commit(root, plan, 0, shard) is None:  # else another writer has made it since
            with ShardWriter(root, plan, 0, shard) as writer:
                for index in plan.shard_range(shard):
                    writer.add(Record(anchors[index], np.asarray(array_NKHWC[index])))

                writer.commit(_facts(plan))

        done += len(plan.shard_range(shard))
        if report:
            report(done, total)

    set_id = seal_if_complete(root, plan)
    if set_id is None:
        raise WorkError(
            f"{root}: a finished shard has changed meanwhile; run the same command again"
        )

    return set_id


def _facts(plan: Plan) -> dict[str, object]:
    return {"imported": plan.sampler["imported"], **run_stamp("clsp", "numpy", "pillow")}


def _read_header(path: Path) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return shape, type and start of the data of an .npy file."""
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected an .npy file of candidates")

    try:
        with path.open("rb") as file:
            shape, _, dtype = HEADERS[np.lib.format.read_magic(file)](file)
            return shape, dtype, file.tell()
    except (ValueError, KeyError, EOFError, SyntaxError, TokenError) as error:
        # numpy parses the header as Python.
        raise InputError(
            f"{path} does not begin as an .npy file ({error}); expected what numpy.save writes"
        ) from error
