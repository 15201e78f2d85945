"""Putting damaged files of a set right: only bytes that the manifest records ever take a file's place."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from .arrival import receive, retrying
from .durable import remove_temporaries, replacing, sha256_file
from .errors import InputError, WorkError
from .index import write_index_file
from .layout import CARD, CROISSANT, index_path, relative
from .manifest import FileEntry, Manifest, read_manifest
from .plan import Plan, read_plan
from .remote import Remote
from .seal import write_descriptions
from .verify import file_faults
from .writer import Record, write_tar


def damaged_files(root: Path, report: Callable[[int, int], None] | None = None) -> list[str]:
    """The files of the manifest that are missing or have other bytes than it records, in repair order.

    Raises:
        InputError: no sealed set there; or a file's name leads out of the set.
    """
    manifest = read_manifest(root)
    damaged = []
    for done, (name, entry) in enumerate(sorted(manifest.files.items(), key=_order), start=1):
        faults = list(file_faults(root, name, entry, deep=True))
        if any("leaves the set's folder" in fault for fault in faults):
            raise InputError(f"{root}: {faults[0]}")
        damaged += [name] * bool(faults)
        if report:
            report(done, len(manifest.files))
    return damaged


def _order(item: tuple[str, FileEntry]) -> tuple[bool, bool, str]:
    """Plans before tars, indexes after them, descriptions last."""
    name = item[0]
    return (name in (CARD, CROISSANT), name.endswith(".parquet"), name)


def refetch(root: Path, names: list[str], url: str) -> None:
    """Fetch these files from a copy of the set.

    Raises:
        WorkError: the copy does not have the recorded bytes either; the file stays as it was.
    """
    source, manifest = Remote(url), read_manifest(root)
    remove_temporaries(root)
    for name in names:
        retrying(lambda name=name: receive(source, name, manifest.files[name], root / name), source.where(name))


def replace_shard(root: Path, plan: Plan, shard: int, name: str, records: Iterator[Record]) -> None:
    """Put a regenerated tar in the place of a damaged one if it has the recorded bytes.

    Raises:
        WorkError: it has others; the file stays as it was.
    """
    _replace(root, name, read_manifest(root), lambda file: write_tar(file, plan, shard, records))


def rebuild(root: Path, names: list[str]) -> list[str]:
    """Make indexes, card and Croissant metadata among `names` again from sound tars and plans; returns the others.

    Raises:
        WorkError: what was made has not the recorded bytes (another version of a library wrote it).
    """
    manifest, left = read_manifest(root), []
    for name in names:
        numbers = [n for n in range(len(manifest.layers)) if relative(root, index_path(root, n)) == name]
        if numbers:
            plan = read_plan(root, numbers[0])
            _replace(root, name, manifest, lambda file, n=numbers[0], p=plan: write_index_file(file, root, p, n))
        elif name in (CARD, CROISSANT):
            write_descriptions(root, [read_plan(root, n) for n in range(len(manifest.layers))], manifest.files)
            if sha256_file(root / name) != manifest.files[name].sha256:
                raise WorkError(f"{name}: this version of clsp writes another one; fetch it: clsp shards repair --from")
        else:
            left.append(name)
    return left


def _replace(root: Path, name: str, manifest: Manifest, write: Callable[[BinaryIO], object]) -> None:
    expected = manifest.files[name].sha256
    with replacing(root / name) as file:
        write(file)
        file.flush()
        found = sha256_file(Path(file.name))
        if found != expected:
            raise WorkError(
                f"{name}: made again it has other bytes (SHA-256 {found[:16]}…, recorded {expected[:16]}…): another "
                "device, dtype or library version than the commit record's; fetch it: clsp shards repair --from URL"
            )
