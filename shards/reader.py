"""Reading a sealed shard set: records by position, through the index and memory maps."""

import mmap
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from .anchors import Anchors
from .codec import decode
from .errors import InputError, WorkError
from .index import LayerIndex, read_index
from .layout import index_path, shard_path
from .plan import Plan, read_plan
from .seal import Manifest, read_manifest

OPEN_SHARDS = 64


class ShardSet:
    """A sealed shard set on a local disk, map-style: position `i` is the i-th anchor.

    Args:
        root: the folder that holds `manifest.json`.
        anchors: the source, needed only for sets written with `shards.include_anchors = false`.

    Raises:
        InputError: no sealed set there, another schema version, or a plan that the manifest does not know.
        WorkError: the index is damaged.
    """

    def __init__(self, root: str | Path, anchors: Anchors | None = None):
        self.root = Path(root)
        self.manifest: Manifest = read_manifest(self.root)
        self.plan: Plan = read_plan(self.root)
        if self.manifest.plan != self.plan.digest:
            raise InputError(f"{self.root}: plan.json is not the manifest's; run: clsp shards verify {self.root}")
        self.set_id = self.manifest.set_id
        self.index: LayerIndex = read_index(index_path(self.root, 0), self.plan)
        self._fields = self.plan.image_fields
        self._anchors = self._check_source(anchors)
        self._maps: OrderedDict[int, mmap.mmap] = OrderedDict()

    def __len__(self) -> int:
        return self.plan.count

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_maps": OrderedDict()}  # workers map the shards anew

    @property
    def candidates(self) -> int:
        """K, the number of candidates per anchor."""
        return self.plan.shards.candidates

    @property
    def size(self) -> int:
        """The side length of every image in pixels."""
        return self.plan.source.size

    def key(self, position: int) -> str:
        """The key of an anchor."""
        return str(self.index.keys[position])

    def labels(self) -> np.ndarray:
        """All labels `(N,)` int64, in order.

        Raises:
            InputError: the set was made from a source without labels.
        """
        if self.index.labels.null_count:
            raise InputError(f"{self.root} has no labels; expected a set made from a labelled source")
        return self.index.labels.to_numpy()

    def anchor_bytes(self, position: int) -> bytes | None:
        """The encoded anchor, or None in a set without anchors."""
        return self._member(position, 0) if self.plan.shards.include_anchors else None

    def candidate_bytes(self, position: int, candidate: int) -> bytes:
        """Encoded candidate `candidate` (0 … K-1) of an anchor."""
        if not 0 <= candidate < self.candidates:
            raise IndexError(f"candidate {candidate}, the set has {self.candidates}")
        return self._member(position, candidate + self.plan.shards.include_anchors)

    def anchor(self, position: int) -> np.ndarray:
        """The anchor `(H, W, 3)` uint8 RGB, from the set or, joined by key, from the source."""
        content = self.anchor_bytes(position)
        if content is not None:
            return self._decode(content, position)
        if self._anchors is None:
            raise InputError(
                f"{self.root} holds no anchors (shards.include_anchors = false); give its source (--recipe)"
            )
        anchor = self._anchors[position]
        if bytes.fromhex(anchor.digest) != self.index.anchors[position].as_py():
            raise WorkError(
                f"anchor {anchor.key} of {self._anchors.config.path} is not the image the set was made from"
            )
        return anchor.image

    def candidate(self, position: int, candidate: int) -> np.ndarray:
        """Candidate `candidate` of an anchor, `(H, W, 3)` uint8 RGB."""
        return self._decode(self.candidate_bytes(position, candidate), position)

    def _check_source(self, anchors: Anchors | None) -> Anchors | None:
        source = self.plan.source
        wanted = (source.split, source.count, source.size, source.resize)
        if anchors is not None:
            found = (anchors.config.split, len(anchors), anchors.size, anchors.config.resize)
            if found != wanted:
                raise InputError(
                    f"{self.root} was made from anchors with (split, count, size, resize) = {wanted}, the source given "
                    f"has {found}; check the recipe's [anchors]"
                )
        return anchors

    def _decode(self, content: bytes, position: int) -> np.ndarray:
        try:
            return decode(content, self.plan.shards.codec, self.size)
        except WorkError as error:
            raise WorkError(f"{self.root}: record {self.key(position)}: {error}") from error

    def _member(self, position: int, member: int) -> bytes:
        start = int(self.index.offsets[position, member])
        size = int(self.index.sizes[position, member])
        content = self._map(int(self.index.shards[position]))[start : start + size]
        if len(content) != size:
            raise WorkError(
                f"{self.root}: record {self.key(position)} is cut short; run: clsp shards verify {self.root}"
            )
        return content

    def _map(self, shard: int) -> mmap.mmap:
        if shard in self._maps:
            self._maps.move_to_end(shard)
            return self._maps[shard]
        path = shard_path(self.root, 0, shard)
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise WorkError(f"{path} cannot be read ({error}); run: clsp shards verify {self.root}") from error
        self._maps[shard] = mapped
        if len(self._maps) > OPEN_SHARDS:
            self._maps.popitem(last=False)
        return mapped
