"""Read a sealed shard set: records by position, through the index and memory maps."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...core import InputError, WorkError
from ..format.codec import decode
from ..format.index import LayerIndex, ShardRows
from ..format.layout import index_path, layer_name, plan_path, shard_path
from ..format.manifest import Manifest
from ..format.metadata import parse_metadata, read_json
from ..format.plan import Plan, follow_plan
from ..remote.cache import open_store
from ..sources.images import Anchor, ImageSource

if TYPE_CHECKING:
    from .choose_pixels import CacheKind
    from .pairs import PairLoader

OPEN_SHARDS = 64
HERE = Path()


@dataclass(frozen=True)
class LayerReader:
    """Holds an opened layer: its number, plan and index."""

    number: int
    plan: Plan
    index: LayerIndex


class ShardSet:
    """Reads a sealed shard set, map-style: position `i` is its i-th anchor.

    Args:
        location: the folder that holds `manifest.json`, or the URL of one (fsspec's; a shard at a time is fetched
            into a bounded local cache and checked).
        anchors: the source, needed only for sets written with `shards.include_anchors = false`, and to make more
            candidates for a set whose codec is lossy.
        layers: names of the layers to use, which must be the first ones; None uses all.
        cache: folder of the cache for a URL.

    Raises:
        InputError: no sealed set there, another schema version, or a plan that the manifest does not know.
        WorkError: the index is damaged.

    >>> import tempfile
    >>> from clsp.shards.example import make_example_set
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     root = make_example_set(Path(folder)).root
    ...     shards = ShardSet(root)
    ...     shards.key(3), shards.label(3), shards.candidate(3, 1).shape
    ('train_00000003', 3, (8, 8, 3))
    """

    def __init__(
        self,
        location: str | Path,
        anchors: ImageSource | None = None,
        layers: Sequence[str] | None = None,
        cache: Path | None = None,
    ):
        self.store = open_store(location, cache)
        self.cache = cache
        self.root: Path = self.store.root
        self.manifest: Manifest = self.store.manifest
        self.set_id = self.manifest.set_id

        # Open the layers.
        sealed = [layer.name for layer in self.manifest.layers]
        used = sealed if layers is None else list(layers)
        if not used or used != sealed[: len(used)]:
            raise InputError(f"{location} has {len(sealed)} layers, asked for {', '.join(used)}")

        self.layers: list[LayerReader] = []
        for number in range(len(used)):
            self.layers.append(self._open_layer(number, self.layers))

        self.plan: Plan = self.layers[0].plan
        if self.manifest.plan != self.plan.digest:
            raise InputError(
                f"{location}: plan.json is not the manifest's; run: clsp shards verify {location}"
            )

        # Find the place of every candidate.
        self._members: list[tuple[LayerReader, int]] = []
        for layer in self.layers:
            first = 1 if layer.plan.shards.include_anchors else 0
            for member in range(first, len(layer.plan.image_fields)):
                self._members.append((layer, member))

        self._records = self.plan.shards.records
        self._count = self.plan.count
        self._anchors = self._check_source(anchors)
        self._opened: dict[tuple[int, int], tuple[ShardRows, mmap.mmap]] = {}

    def _open_layer(self, number: int, layers: list[LayerReader]) -> LayerReader:
        path = self.store.path(plan_path(HERE, number).as_posix())
        plan = parse_metadata(Plan, read_json(path), str(path))
        declared = self.manifest.layers[number]
        first = plan if number == 0 else layers[0].plan
        found = (plan.start, plan.shards.candidates, plan.count, plan.shards.records)
        expected = (declared.first, declared.candidates, first.count, first.shards.records)
        if found != expected:
            raise InputError(
                f"{path}: not the plan of the manifest's {declared.name}; run: clsp shards verify"
            )

        index = index_path(HERE, number).as_posix()
        if index not in self.manifest.files:
            raise InputError(
                f"{self.root}: the manifest does not seal {index}; fetch the set again"
            )

        return LayerReader(number, plan, LayerIndex(self.store.path(index), plan))

    def __len__(self) -> int:
        return self.plan.count

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}  # workers map the shards anew

    @property
    def candidates(self) -> int:
        """Return K, the number of candidates per anchor."""
        return len(self._members)

    @property
    def size(self) -> int:
        """Return the side length of every image in pixels."""
        return self.plan.source.size

    @property
    def shard_sizes(self) -> list[int]:
        """Return the number of anchors in each shard."""
        return [len(self.plan.shard_range(shard)) for shard in range(self.plan.shard_count)]

    @property
    def identity(self) -> dict[str, Any]:
        """Identify the content read: by the plan's digest, and the digest of the index of every layer used."""
        digests = {}
        for layer in self.layers:
            index = index_path(HERE, layer.number).as_posix()
            digests[layer_name(layer.number)] = self.manifest.files[index].sha256

        return {"plan": self.plan.digest, "layers": digests}

    def loader(
        self,
        batch_size: int,
        epochs: int = 1,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
        cache: "CacheKind" = "none",
    ) -> "PairLoader":
        """Load the pairs in batches: the one call that a training loop needs.

        The order and the candidates drawn depend on (plan, seed, epoch) alone; each anchor comes once an epoch, but
        for a short last batch, which is dropped.

        Args:
            batch_size: anchors of a global batch, over all ranks; divisible by `world_size`.
            epochs: how often the set is read.
            seed: of the order and of the draw of candidates.
            rank: number of this process, which gets its slice of every global batch.
            world_size: number of processes.
            workers: decoding processes; they change nothing but the speed.
            cache: `memory` decodes every image once, into the cache folder; `auto` if that is small, see
                `open_pixels`.

        Raises:
            InputError: the batch is larger than the set, or not divisible by `world_size`; or the cache does not fit.

        >>> import tempfile
        >>> from clsp.shards.example import make_example_set
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     shards = make_example_set(Path(folder), anchors=8)
        ...     for batch in shards.loader(batch_size=4, epochs=1):
        ...         batch.anchors_BCHW.shape, batch.candidates_BCHW.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3, 8, 8]))
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3, 8, 8]))
        """
        from .choose_pixels import open_pixels
        from .order import BatchOrder
        from .pairs import PairDataset, PairLoader  # which need torch, as a set does not

        pixels = open_pixels(self, cache, quiet=rank > 0)
        dataset = PairDataset(self, seed, with_candidates=self.candidates > 0, pixels=pixels)
        order = BatchOrder(self.shard_sizes, self.plan.digest, seed, batch_size, rank, world_size)
        return PairLoader(dataset, order, last=order.batches_per_epoch * epochs, workers=workers)

    def key(self, position: int) -> str:
        """Return the key of an anchor."""
        rows, row = self._locate(self.layers[0], position)
        return rows.keys[row]

    def source_index(self, position: int) -> int:
        """Return the index of an anchor in its source."""
        rows, row = self._locate(self.layers[0], position)
        return rows.indices[row]

    def source_indices(self) -> np.ndarray:
        """Return the index in the source of every anchor, `(N,)` int64, ascending."""
        return self.layers[0].index.column("index").to_numpy()

    def key_and_label(self, position: int) -> tuple[str, int | None]:
        """Return the key of an anchor and its label, which is None without one."""
        rows, row = self._locate(self.layers[0], position)
        return rows.keys[row], rows.labels[row]

    def label(self, position: int) -> int | None:
        """Return the label of an anchor, or None without one."""
        rows, row = self._locate(self.layers[0], position)
        return rows.labels[row]

    def labels(self) -> np.ndarray:
        """Return all labels `(N,)` int64, in order.

        Raises:
            InputError: the set was made from a source without labels.
        """
        labels = self.layers[0].index.column("label")
        if labels.null_count:
            raise InputError(
                f"{self.root} has no labels; expected a set made from a labelled source"
            )

        return labels.to_numpy()

    def anchor_bytes(self, position: int) -> bytes | None:
        """Return the encoded anchor, or None in a set without anchors."""
        if not self.plan.shards.include_anchors:
            return None
        return self.member_bytes(self.layers[0], position, 0)

    def candidate_bytes(self, position: int, candidate: int) -> bytes:
        """Return the encoded candidate `candidate` (0 … K-1) of an anchor."""
        if not 0 <= candidate < self.candidates:
            raise IndexError(f"candidate {candidate}, the set has {self.candidates}")
        layer, member = self._members[candidate]
        return self.member_bytes(layer, position, member)

    def anchor(self, position: int) -> np.ndarray:
        """Return the anchor `(H, W, 3)` uint8 RGB, from the set or, joined by key and digest, from the source."""
        content = self.anchor_bytes(position)
        if content is not None:
            return self._decode(content, position, self.layers[0])
        return self.source_anchor(position).image

    def candidate(self, position: int, candidate: int) -> np.ndarray:
        """Return candidate `candidate` of an anchor, `(H, W, 3)` uint8 RGB."""
        content = self.candidate_bytes(position, candidate)
        return self._decode(content, position, self._members[candidate][0])

    def anchor_record(self, position: int) -> Anchor:
        """Return the anchor with its index, key, label and digest, as the source gave it."""
        shard, number = divmod(position, self._records)
        row = self.layers[0].index.table(shard)[number]
        return Anchor(
            index=row["index"],
            key=row["key"],
            image=self.anchor(position),
            label=row["label"],
            digest=row["anchor"].hex(),
        )

    def source_anchor(self, position: int) -> Anchor:
        """Return the anchor as the source has it, joined by key and digest.

        Raises:
            InputError: the set was opened without its source.
            WorkError: the source has another image there.
        """
        if self._anchors is None:
            raise InputError(
                f"{self.root} holds no anchors (shards.include_anchors = false); give its source (--recipe)"
            )
        return self._join(position, self._anchors)

    def member_bytes(self, layer: LayerReader, position: int, member: int) -> bytes:
        """Return the bytes of a record's member in a layer."""
        if not 0 <= position < self._count:
            raise IndexError(position)

        shard, row = divmod(position, self._records)
        opened = self._opened.get((layer.number, shard))
        rows, mapped = opened or self._open_shard(layer, shard, position)
        size = rows.sizes_NM.item(row, member)
        start = rows.offsets_NM.item(row, member)
        content = mapped[start : start + size]
        if len(content) != size:
            raise self.damaged(self.key(position), "is cut short")

        return content

    def damaged(self, key: str, found: str) -> WorkError:
        """Return the error of a damaged record: its key, what was found, and what mends it."""
        advice = f"run: clsp shards repair {self.root}"
        return WorkError(f"{self.root}: record {key} {found}; {advice}")

    def candidate_member(self, candidate: int) -> tuple[LayerReader, int]:
        """Return the layer that holds a candidate, and its place among the members of a record."""
        return self._members[candidate]

    def _locate(self, layer: LayerReader, position: int):
        if not 0 <= position < self._count:
            raise IndexError(position)
        shard, row = divmod(position, self._records)
        return layer.index.rows(shard), row

    def _join(self, position: int, anchors: ImageSource) -> Anchor:
        shard, row = divmod(position, self._records)
        expected = self.layers[0].index.table(shard)[row]
        anchor = anchors[expected["index"]]
        if (anchor.key, bytes.fromhex(anchor.digest)) != (expected["key"], expected["anchor"]):
            raise WorkError(
                f"anchor {anchor.key} of {anchors.config.path} is not the image the set was made from"
            )
        return anchor

    def _check_source(self, anchors: ImageSource | None) -> ImageSource | None:
        source = self.plan.source
        wanted = (source.split, source.count, source.size, source.resize)
        if anchors is not None:
            found = (anchors.config.split, len(anchors), anchors.size, anchors.config.resize)
            if found != wanted:
                raise InputError(
                    f"{self.root} was made from anchors with (split, count, size, resize) = {wanted}, the source given "
                    f"has {found}; check the recipe's [anchors]"
                )
            follow_plan(anchors, source)

        return anchors

    def _decode(self, content: bytes, position: int, layer: LayerReader) -> np.ndarray:
        try:
            return decode(content, layer.plan.shards.codec, self.size)
        except WorkError as error:
            raise self.damaged(self.key(position), f"does not decode ({error})") from error

    def _open_shard(
        self, layer: LayerReader, shard: int, position: int
    ) -> tuple[ShardRows, mmap.mmap]:
        name = shard_path(HERE, layer.number, shard).as_posix()
        try:
            with self.store.path(name).open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            found = f"is in {name}, which cannot be read ({why})"
            raise self.damaged(self.key(position), found) from error

        if len(self._opened) >= OPEN_SHARDS:
            self._opened.pop(next(iter(self._opened)))

        opened = (layer.index.rows(shard), mapped)
        self._opened[layer.number, shard] = opened
        return opened
