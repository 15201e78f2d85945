"""Export a set as one array, or as a folder of images, for programs that read neither tars nor this package.

N: anchors, K: candidates per anchor, H, W: height and width.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ...core import InputError, Report, WorkError, json_line, replacing
from ..format.codec import JPEG_START
from ..format.layout import shard_name
from ..reading.shard_set import ShardSet

METADATA = "metadata.jsonl"


def export_npy(shards: ShardSet, path: Path, report: Report | None = None) -> None:
    """Write the candidates `(N, K, H, W, 3)` uint8, in the set's order, to `path`: whole or not at all.

    Args:
        report: called with (anchors done, all anchors).

    Raises:
        InputError: `path` exists.
        WorkError: an image of the set is damaged.
    """
    if path.exists():
        raise InputError(f"{path} exists; give a new name or remove it")

    shape = (len(shards), shards.candidates, shards.size, shards.size, 3)
    with replacing(path) as file:
        header = {
            "descr": np.lib.format.dtype_to_descr(np.dtype(np.uint8)),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(file, header)

        for position in range(len(shards)):
            for candidate in range(shards.candidates):
                file.write(np.ascontiguousarray(shards.candidate(position, candidate)).data)
            if report:
                report(position + 1, len(shards))


def export_folder(shards: ShardSet, folder: Path, report: Report | None = None) -> None:
    """Write the set as an image folder: `datasets.load_dataset("imagefolder", data_dir=folder)` reads it.

    The images are `folder/SPLIT/shard-000000/KEY.anchor.webp`, `KEY.c000.webp`, …: the bytes that the set holds.
    `folder/SPLIT/metadata.jsonl` is written last and has `file_name`, `key`, `candidate` (null for an anchor), `index`
    and `label` of each. SPLIT is there because `datasets` takes a split from names: below a folder named `train` it
    finds the metadata too, beside files named `train_…` it would not.

    Args:
        report: called with (anchors done, all anchors).

    Raises:
        InputError: `folder` exists and is not an empty folder.
        WorkError: the set is cut short, or names a record in a way that is no file name.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} exists and is not empty (perhaps of an unfinished export); remove it or choose a new one"
        )

    base = folder / _checked(shards.plan.source.split.replace(".", "_"))
    base.mkdir(parents=True)
    with replacing(base / METADATA) as file:  # takes its name when every image is written
        for position in range(len(shards)):
            for row, content in _images(shards, position):
                path = base / str(row["file_name"])
                path.parent.mkdir(exist_ok=True)
                with path.open("xb") as image:
                    image.write(content)

                file.write(json_line(row).encode())

            if report:
                report(position + 1, len(shards))


def _images(shards: ShardSet, position: int) -> Iterator[tuple[dict[str, object], bytes]]:
    """Yield the metadata and the encoded bytes of each image of a record."""
    key = _checked(shards.key(position))
    contents: list[tuple[int | None, bytes | None]] = [(None, shards.anchor_bytes(position))]
    for candidate in range(shards.candidates):
        contents.append((candidate, shards.candidate_bytes(position, candidate)))

    folder = shard_name(position // shards.plan.shards.records)

    for candidate, content in contents:
        if content is None:
            continue

        name = "anchor" if candidate is None else f"c{candidate:03d}"
        row = {
            "file_name": f"{folder}/{key}.{name}.{_ending(content)}",
            "key": key,
            "candidate": candidate,
            "index": shards.source_index(position),
            "label": shards.label(position),
        }
        yield row, content


def _ending(content: bytes) -> str:
    """Read the codec's ending from the bytes: layers of a set may have been coded differently."""
    if content.startswith(JPEG_START):
        return "jpg"
    return "png" if content.startswith(b"\x89PNG") else "webp"


def _checked(name: str) -> str:
    """Return the name if a file may have it: a set that came from elsewhere must not write outside of the folder."""
    is_plain = all(character not in "/\\:" and character >= " " for character in name)
    if not name or name.startswith(".") or not is_plain:
        raise WorkError(
            f"the set names a record or split {name!r}, which is no file name; run: clsp shards verify"
        )

    return name
