"""Keep decoded pixels in files that all processes map, so that no image is decoded twice.

CACHE/pixels/DIGEST-HOST/           of a layer, while images are still added; DIGEST alone once all are there
    owner.json                      whose pixels these are, and since which start of the machine they are added
    pixels.u8                       (N, M, H, W, 3) uint8 RGB, as large as it will be from the beginning
    present.u8                      (N, M) uint8: 1 where an image is there, written after it
    finished.json                   size, SHA-256 and time of pixels.u8, written last

An image is decoded when it is first asked for, by whoever asks, and compared with the digest of its pixels in the
index. So an epoch that fills the cache decodes no more than one without a cache, nobody waits for anybody, and a killed
process leaves nothing half done: what is marked as present is there, since pages once written outlive the process. They
do not outlive a crash of the machine, so after its next start what is present is compared with the index again.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import shutil
import socket
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from ...core import (
    DISK_FULL,
    InputError,
    canonical_json,
    locked,
    sha256_file,
    shape_digest,
    write_file,
)
from ..format.layout import layer_name
from ..remote.cache import PIXELS, cache_folder
from .shard_set import LayerReader, ShardSet

log = logging.getLogger(__name__)

OWNER, ARRAY, PRESENT, FINISHED = "owner.json", "pixels.u8", "present.u8", "finished.json"
PIXELS_BYTES = 16 << 30
"""What the arrays of all sets in a cache folder may take; the least recently used are removed first."""
SPOT_CHECKS = 16
"""Shards of which an image is compared with the index when an array is opened."""
BOOT = Path("/proc/sys/kernel/random/boot_id")

Member = tuple[LayerReader, int, int]
"""The layer, the anchor's position and the place in its record."""
Decode = Callable[[Sequence[Member]], torch.Tensor]


class Pixels(Protocol):
    """Gives the pixels of members of records, each decoded once."""

    def tensor(self, members: Sequence[Member], decode: Decode) -> torch.Tensor:
        """Return the pixels of members, `(B, H, W, 3)`; `decode` returns the same of those that are not there yet."""
        ...

    def is_filled(self, with_candidates: bool) -> bool:
        """Return True if hardly an image that is asked for has still to be decoded."""
        ...

    def finish(self) -> None:
        """Close the arrays to which nothing is left to add."""
        ...


class PixelCache:
    """Keeps the decoded pixels of a set's layers in mapped files, shared by workers, ranks and later runs.

    Args:
        shards: the set; each layer that it uses has an array of its own, named by the plan's and the index's digest.
        folder: the cache folder; by default the set's, which is `$CLSP_CACHE` or the user's.
        most: how many bytes the arrays of all sets may take there; the ones in use stay.

    >>> import tempfile
    >>> from clsp.shards.example import make_example_set
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = make_example_set(Path(folder) / "set", anchors=8)
    ...     cache = PixelCache(shards, Path(folder) / "cache")
    ...     cache.bytes  # 8 anchors with 2 candidates each, 8x8 RGB
    4608
    """

    def __init__(self, shards: ShardSet, folder: Path | None = None, most: int = PIXELS_BYTES):
        self.shards = shards
        self.folder = folder or shards.cache or cache_folder()
        self.most = most
        self.layers = [LayerPixels(shards, layer, self.folder / PIXELS) for layer in shards.layers]

    @property
    def bytes(self) -> int:
        """Return the bytes of all arrays."""
        return sum(layer.bytes for layer in self.layers)

    @property
    def bytes_needed(self) -> int:
        """Return the bytes of the arrays that are not there yet."""
        return sum(layer.bytes for layer in self.layers if not layer.exists())

    def check(self) -> None:
        """Check that the arrays are there or can be made; makes nothing.

        Raises:
            InputError: they are too large for the disk, or the folder cannot be written.
        """
        needed = self.bytes_needed
        if not needed:
            return

        place = existing_part(self.folder / PIXELS)
        if not os.access(place, os.W_OK | os.X_OK):
            raise InputError(f"the cache folder {self.folder} cannot be written; {_advice()}")

        free = shutil.disk_usage(place).free
        if needed > free:
            raise _too_large(needed, free, self.folder)

    def open(self) -> None:
        """Map the arrays, made first where they are missing.

        Raises:
            InputError: as `check`, or the disk is full after all.
        """
        self.check()
        self._make_room()
        for layer in self.layers:
            layer.open()

    def tensor(self, members: Sequence[Member], decode: Decode) -> torch.Tensor:
        """Return the pixels of members, `(B, H, W, 3)` uint8; those that are not there yet are decoded and added.

        Args:
            decode: returns the same of members, `(B, H, W, 3)`.

        Raises:
            WorkError: decoded pixels are not those that the index has the digest of.
        """
        return torch.from_numpy(self._gather(members, decode))

    def _gather(self, members: Sequence[Member], decode: Decode) -> np.ndarray:
        first = members[0][0]
        if all(layer is first for layer, _, _ in members):
            return self.layers[first.number].gather(members, decode)

        size = self.shards.size
        images_BHWC = np.empty((len(members), size, size, 3), np.uint8)
        for layer in self.layers:
            rows = [row for row, member in enumerate(members) if member[0].number == layer.number]
            if rows:
                images_BHWC[rows] = layer.gather([members[row] for row in rows], decode)

        return images_BHWC

    def is_filled(self, with_candidates: bool) -> bool:
        """Return True if less than a hundredth of the images in use has still to be decoded."""
        missing = 0
        total = 0
        for layer in self.layers:
            present_NM = layer.present()
            if not with_candidates:
                present_NM = present_NM[:, : 1 if layer.has_anchors else 0]
            missing += int((present_NM == 0).sum())
            total += present_NM.size

        return missing <= total // 100

    def finish(self) -> None:
        """Check and close those arrays to which nothing is left to add; any process may do it, at any time."""
        for layer in self.layers:
            layer.finish()

    def _make_room(self) -> None:
        """Remove the least recently used arrays of other layers until all fit into `most`."""
        root = self.folder / PIXELS
        if not root.is_dir() or not os.access(root, os.W_OK):
            return

        own = {path.name for layer in self.layers for path in (layer.final, layer.building)}
        others = []
        for folder in root.iterdir():
            with contextlib.suppress(OSError):  # another process is making room, too
                size = (folder / ARRAY).stat().st_size
                used = (folder / OWNER).stat().st_mtime_ns
                if folder.name not in own:
                    others.append((used, size, folder))

        total = self.bytes + sum(size for _, size, _ in others)
        for _, size, folder in sorted(others):
            if total > self.most and _remove_unused(folder):
                total -= size


@dataclass(frozen=True)
class _Owner:
    """Says whose pixels an array has."""

    plan: str
    index: str
    shape: list[int]

    def to_json(self, boot: str) -> bytes:
        return canonical_json({**self.__dict__, "boot": boot})


class LayerPixels:
    """Keeps the decoded pixels of one layer; see the top of the module for its files."""

    def __init__(self, shards: ShardSet, layer: LayerReader, root: Path):
        size = shards.size
        self.shards = shards
        self.layer = layer
        self.number = layer.number
        self.members = len(layer.plan.image_fields)
        self.has_anchors = layer.plan.shards.include_anchors
        self.shape = (len(shards), self.members, size, size, 3)
        self.bytes = int(np.prod(self.shape))
        self._shape_digest = shape_digest(self.shape[2:])

        index = shards.identity["layers"][layer_name(layer.number)]
        self.owner = _Owner(layer.plan.digest, index, list(self.shape))
        name = hashlib.sha256(f"{layer.plan.digest}\0{index}".encode()).hexdigest()[:16]
        self.final = root / name
        self.building = root / f"{name}-{socket.gethostname()}"
        """Images are added on one machine alone: others may see the mark of an image ahead of its pixels."""
        self._mapped: _Mapped | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": None, "_shape_digest": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # another process maps the files anew
        self._shape_digest = shape_digest(self.shape[2:])

    def exists(self) -> bool:
        """Return True if the array is there, with or without all of its images."""
        for folder in (self.final, self.building):
            with contextlib.suppress(OSError):
                if (folder / ARRAY).stat().st_size == self.bytes:
                    return True
        return False

    def open(self) -> "_Mapped":
        """Map the array, made first where it is missing; what does not fit is made anew.

        Raises:
            InputError: the disk is full or cannot be written.
        """
        if self._mapped is not None:
            return self._mapped

        self._mapped = self._map_finished()
        if self._mapped is None:
            try:
                with locked(self.building):
                    # Another process may have finished it meanwhile.
                    self._mapped = self._map_finished() or self._map_unfinished()
            except OSError as error:
                reason = error.strerror or str(error)
                if error.errno in DISK_FULL and error.errno != errno.EROFS:
                    free = shutil.disk_usage(existing_part(self.building)).free
                    raise _too_large(
                        self.bytes, free, self.building.parent.parent, reason
                    ) from error
                raise InputError(
                    f"the cache folder {self.building.parent.parent} cannot be used ({reason}); {_advice()}"
                ) from error

        return self._mapped

    def present(self) -> np.ndarray:
        """Return `(N, M)` uint8: 1 where an image is there."""
        return self.open().present_R.reshape(self.shape[:2])

    def gather(self, members: Sequence[Member], decode: Decode) -> np.ndarray:
        """Return the pixels of members of this layer, `(B, H, W, 3)`."""
        mapped = self._mapped or self.open()
        places_B = self.places(members)
        is_present_B = mapped.present_R.take(places_B) != 0
        if is_present_B.all():
            return mapped.pixels_RHWC.take(places_B, axis=0)

        # Those that are not there yet
        missing = np.flatnonzero(~is_present_B)
        absent = [members[row] for row in missing.tolist()]
        decoded_BHWC = decode(absent).numpy()
        self._check(absent, decoded_BHWC)
        mapped.add(places_B[missing], decoded_BHWC)
        if len(missing) == len(members):
            return decoded_BHWC

        # And the others, without touching the empty pages of the array
        images_BHWC = np.empty((len(members), *self.shape[2:]), np.uint8)
        images_BHWC[missing] = decoded_BHWC
        images_BHWC[is_present_B] = mapped.pixels_RHWC.take(places_B[is_present_B], axis=0)
        return images_BHWC

    def places(self, members: Sequence[Member]) -> np.ndarray:
        """Return the rows of members in the array, with a row per image."""
        places = [position * self.members + member for _, position, member in members]
        return np.array(places, dtype=np.int64)

    def finish(self) -> None:
        """Check and close the array if all images are there; another process may be doing it already."""
        mapped = self._mapped
        if mapped is None or mapped.is_finished or not mapped.present_R.all():
            return

        with contextlib.suppress(OSError), locked(self.building, wait=False):
            if self.final.exists() or not self.building.exists():
                return

            # The pixels are durable before the mark that says so.
            path = self.building / ARRAY
            mapped.sync()
            digest = sha256_file(path)
            status = path.stat()
            marker = {"bytes": status.st_size, "sha256": digest, "time_ns": status.st_mtime_ns}
            write_file(self.building / FINISHED, canonical_json(marker))
            self.building.rename(self.final)

    # Opening

    def _map_finished(self) -> "_Mapped | None":
        """Map the array with all its images, or return None where there is none that fits."""
        try:
            marker = json.loads((self.final / FINISHED).read_bytes())
            path = self.final / ARRAY
            status = path.stat()
            fits = self._is_owner(self.final) and status.st_size == marker["bytes"] == self.bytes
            if fits and status.st_mtime_ns != marker["time_ns"]:  # copied, or written to
                fits = sha256_file(path) == marker["sha256"]
            if not fits:
                raise ValueError("it is cut short, damaged or of another set")

            mapped = _Mapped(self.final, self.shape, is_finished=True)
            self._spot_check(mapped)
            return mapped
        except FileNotFoundError:
            if not self.final.exists():
                return None
            found = "it is not whole"
        except (OSError, ValueError, KeyError, TypeError) as error:
            found = str(error)

        log.warning("%s is not used (%s); its pixels are decoded again", self.final, found)
        _remove_unused(self.final)
        return None

    def _map_unfinished(self) -> "_Mapped":
        """Map the array that images are added to; the caller holds its lock."""
        boot = BOOT.read_text(encoding="ascii").strip() if BOOT.exists() else ""
        fits = False
        if self.building.exists():
            with contextlib.suppress(OSError):
                sizes = [(self.building / name).stat().st_size for name in (ARRAY, PRESENT)]
                fits = sizes == [self.bytes, self.shape[0] * self.members]
                fits = fits and self._is_owner(self.building)
            if not fits:
                log.warning("%s does not fit the set; its pixels are decoded again", self.building)
                shutil.rmtree(self.building)

        if not fits:
            self._allocate()
            write_file(self.building / OWNER, self.owner.to_json(boot))

        mapped = _Mapped(self.building, self.shape, is_finished=False)
        try:
            self._spot_check(mapped)
            since = json.loads((self.building / OWNER).read_bytes())["boot"]
            is_sound = boot != "" and since == boot
        except ValueError:
            is_sound = False

        if not is_sound:
            self._forget_what_differs(mapped)
            write_file(self.building / OWNER, self.owner.to_json(boot))
            mapped = _Mapped(self.building, self.shape, is_finished=False)

        return mapped

    def _allocate(self) -> None:
        """Make the files with all their room, so that a full disk is found here."""
        self.building.mkdir(parents=True)
        try:
            for name, size in ((PRESENT, self.shape[0] * self.members), (ARRAY, self.bytes)):
                with (self.building / name).open("wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
        except BaseException:
            shutil.rmtree(self.building, ignore_errors=True)
            raise

    def _is_owner(self, folder: Path) -> bool:
        """Return True if the folder says that its pixels are those of this layer."""
        try:
            found = json.loads((folder / OWNER).read_bytes())
            return {**found, "boot": ""} == {**self.owner.__dict__, "boot": ""}
        except (ValueError, TypeError):
            return False

    # Checking

    def _digests(self, shard: int) -> np.ndarray:
        """Return the digests of a shard's images in the index, `(N, M)` of 16 bytes."""
        return self.layer.index.pixel_digests(shard)

    def _digest(self, image_HWC: np.ndarray) -> bytes:
        """Return the `pixel_digest` of an image of this layer, whose shape is hashed already."""
        digest = self._shape_digest.copy()
        digest.update(image_HWC.data)
        return digest.digest()

    def _check(self, members: Sequence[Member], images_BHWC: np.ndarray) -> None:
        """Raise WorkError unless decoded pixels have the digests of the index."""
        records = self.shards.plan.shards.records
        for (_, position, member), image in zip(members, images_BHWC, strict=True):
            shard, row = divmod(position, records)
            if self._digest(image) != self._digests(shard)[row, member]:
                key = self.shards.key(position)
                field = self.layer.plan.image_fields[member]
                raise self.shards.damaged(key, f"has other pixels in {field} than the index says")

    def _spot_check(self, mapped: "_Mapped") -> None:
        """Raise ValueError if one of a few images, spread over the array, is not the set's."""
        count = self.layer.plan.shard_count
        for shard in range(0, count, -(-count // SPOT_CHECKS)):
            for place in self._differing(mapped, shard, most=1):
                raise ValueError(f"image {place} is not the set's")

    def _forget_what_differs(self, mapped: "_Mapped") -> None:
        """Compare all images that are there with the index, and take back the marks of others."""
        for shard in range(self.layer.plan.shard_count):
            for place in self._differing(mapped, shard):
                mapped.forget(place)

    def _differing(self, mapped: "_Mapped", shard: int, most: int | None = None) -> Iterator[int]:
        """Yield the rows of a shard's images, the first `most` that are there, whose digest is not the index's."""
        positions = self.layer.plan.shard_range(shard)
        first = positions.start * self.members
        present = np.flatnonzero(mapped.present_R[first : positions.stop * self.members])
        for number in present[:most].tolist():
            row, member = divmod(number, self.members)
            image = mapped.pixels_RHWC[first + number]
            if self._digest(image) != self._digests(shard)[row, member]:
                yield first + number


class _Mapped:
    """Holds the mapped files of an array, and the lock that says that they are in use."""

    def __init__(self, folder: Path, shape: tuple[int, ...], is_finished: bool):
        rows = shape[0] * shape[1]
        self.folder = folder
        self.is_finished = is_finished
        self.pixels_RHWC = _map(folder / ARRAY, (rows, *shape[2:]))
        self.present_R = _map(folder / PRESENT, (rows,), "r" if is_finished else "r+")
        self._image_bytes = int(np.prod(shape[2:]))

        # Pixels are written by hand, not through the map, where a full disk would end the process
        self._array = None if is_finished else os.open(folder / ARRAY, os.O_RDWR)

        # In use as long as any process has this file
        owner = os.open(folder / OWNER, os.O_RDONLY)
        fcntl.flock(owner, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            os.utime(folder / OWNER)

        opened = [owner] if self._array is None else [owner, self._array]
        weakref.finalize(self, _close, opened)

    def add(self, places_B: np.ndarray, images_BHWC: np.ndarray) -> None:
        """Add images: first their pixels, then the marks."""
        if self._array is None:
            return

        try:
            for place, image in zip(places_B.tolist(), images_BHWC, strict=True):
                os.pwrite(self._array, image.data, place * self._image_bytes)
            self.present_R[places_B] = 1
        except OSError as error:
            log.warning("%s takes no more images (%s)", self.folder, error.strerror)
            self._array = None

    def forget(self, place: int) -> None:
        """Take back the mark of an image."""
        self.present_R[place] = 0

    def sync(self) -> None:
        """Make all pixels durable."""
        if self._array is not None:
            os.fsync(self._array)


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _map(path: Path, shape: tuple[int, ...], mode: Literal["r", "r+"] = "r") -> np.ndarray:
    return np.asarray(np.memmap(path, np.uint8, mode, shape=shape))


def _remove_unused(folder: Path) -> bool:
    """Remove an array unless a process has it open; return True if it is gone."""
    try:
        with (folder / OWNER).open("rb") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        pass
    except OSError:
        return False

    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def existing_part(path: Path) -> Path:
    """Return a path, or the nearest of its parents, that exists."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def _too_large(needed: int, free: int, folder: Path, reason: str = "") -> InputError:
    return InputError(
        f"the decoded pixels are too large for the disk{f' ({reason})' * bool(reason)}: they need "
        f"{gigabytes(needed)}, {gigabytes(free)} free in {folder}; {_advice()}"
    )


def _advice() -> str:
    return "choose pretrain.cache=none or another cache folder (CLSP_CACHE)"


def gigabytes(count: int) -> str:
    """Return a number of bytes as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size / 10:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"
