"""Put damaged files of a set right: only bytes that the manifest records ever take a file's place."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ...core import InputError, Report, WorkError, remove_temporaries, replacing, sha256_file
from ..format.index import write_index_file
from ..format.layout import DESCRIPTIONS, index_path, parse_shard
from ..format.manifest import Manifest, read_manifest
from ..format.plan import Plan, read_plan
from ..format.seal import descriptions
from ..format.writer import RecordTar
from ..remote.filesystem import Remote
from ..remote.verified_copy import receive, retrying
from .verify import FaultKind, file_fault


@dataclass(frozen=True)
class DamagedTar:
    """Names a damaged tar, and says which shard of which layer it is."""

    name: str
    layer: int
    shard: int


@dataclass(frozen=True)
class Damage:
    """Lists the damaged files of a set, apart by the way in which each can be repaired."""

    tars: list[DamagedTar]
    """Made again by the diffusion model."""
    derived: list[str]
    """Made again from the tars and plans: indexes and descriptions."""
    lost: list[str]
    """Only a copy of the set has them."""

    @property
    def names(self) -> list[str]:
        """Return the names of all damaged files, those first that others are made from."""
        tars = [tar.name for tar in self.tars]
        return [*self.lost, *tars, *self.derived]


def damaged_files(root: Path, report: Report | None = None) -> Damage:
    """Find the files of the manifest that are missing or have other bytes than it records.

    Raises:
        InputError: no sealed set there; or a file's name leads out of the set.
    """
    manifest = read_manifest(root)
    damage = Damage([], [], [])
    indexes = _indexes(manifest)

    for done, (name, entry) in enumerate(sorted(manifest.files.items()), start=1):
        fault = file_fault(root, name, entry, deep=True)
        if fault is not None:
            if fault.kind is FaultKind.OUTSIDE:
                raise InputError(f"{root}: {fault}")

            place = parse_shard(name)
            if place is not None:
                layer, shard = place
                damage.tars.append(DamagedTar(name, layer, shard))
            elif name in indexes or name in DESCRIPTIONS:
                damage.derived.append(name)
            else:
                damage.lost.append(name)

        if report:
            report(done, len(manifest.files))

    return damage


def refetch(root: Path, names: list[str], url: str) -> None:
    """Fetch these files from a copy of the set.

    Raises:
        WorkError: the copy does not have the recorded bytes either; the file stays as it was.
    """
    source = Remote(url)
    manifest = read_manifest(root)
    remove_temporaries(root)

    for name in names:
        retrying(
            lambda name=name: receive(source, name, manifest.files[name], root / name),
            source.where(name),
        )


@contextlib.contextmanager
def replacing_shard(root: Path, name: str, plan: Plan, shard: int) -> Iterator[RecordTar]:
    """Yield a tar to which the records of a damaged one are added; it takes its place if it has the recorded bytes.

    Raises:
        WorkError: it has others; the file stays as it was.
        ValueError: the records are not exactly the shard's anchors in order.
    """
    manifest = read_manifest(root)
    with (
        _replacing_recorded(root, name, manifest) as file,
        RecordTar(file, plan, shard) as tar,
    ):
        yield tar
        tar.finish()


def rebuild(root: Path, names: list[str]) -> None:
    """Make the derived files among a set's (`Damage.derived`) again, from sound tars and plans.

    Raises:
        WorkError: what was made has not the recorded bytes (another version of a library wrote it).
    """
    manifest = read_manifest(root)
    plans = [read_plan(root, number) for number in range(len(manifest.layers))]
    indexes = _indexes(manifest)

    for name in names:
        with _replacing_recorded(root, name, manifest) as file:
            if name in DESCRIPTIONS:
                file.write(descriptions(plans, manifest.files)[name])
            else:
                layer = indexes.index(name)
                write_index_file(file, root, plans[layer], layer)


def _indexes(manifest: Manifest) -> list[str]:
    return [index_path(Path(), layer).as_posix() for layer in range(len(manifest.layers))]


@contextlib.contextmanager
def _replacing_recorded(root: Path, name: str, manifest: Manifest) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of a damaged one if, in the end, it has the bytes of the manifest."""
    expected = manifest.files[name].sha256
    with replacing(root / name) as file:
        yield file

        file.flush()
        found = sha256_file(Path(file.name))
        if found != expected:
            raise WorkError(
                f"{name}: made again it has other bytes (SHA-256 {found[:16]}…, recorded {expected[:16]}…): another "
                "device, dtype or library version than the commit record's; fetch it: clsp shards repair --from URL"
            )
