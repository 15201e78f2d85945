"""Read pairs as a `webdataset` pipeline, for training loops of one's own."""

import random
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from webdataset.compat import FluidWrapper
from webdataset.filters import map as decoding
from webdataset.filters import shuffle as shuffling
from webdataset.shardlists import split_by_node, split_by_worker
from webdataset.tariterators import group_by_keys, tar_file_expander
from webdataset.utils import pytorch_worker_info

from ...core import InputError, WorkError, permutation, stream_seed
from ..format.layout import shard_path
from .candidates import CandidateChoice
from .pairs import decode_image
from .shard_set import HERE, LayerReader, ShardSet

Sample = dict[str, Any]


class _Place(NamedTuple):
    """Names a shard to read and the epoch in which it is read."""

    epoch: int
    shard: int


def pair_stream(
    location: str | Path,
    seed: int = 0,
    epochs: int | None = 1,
    shuffle: int = 1000,
    choice: CandidateChoice | None = None,
    cache: Path | None = None,
) -> FluidWrapper:
    """Return a webdataset pipeline of the pairs of a sealed shard set.

    A sample is a dictionary: `anchor` and `candidate` `(3, H, W)` uint8, `label` (-1 without one), `weight` (of the
    candidate drawn) and `__key__`. The pipeline goes on with webdataset's own stages, `.map(…)`, `.batched(…)`, and
    into `webdataset.WebLoader`. The shards of an epoch are permuted, shared out among the ranks and then among the
    workers of each, and read from the first byte to the last; so ranks may get unequal numbers of samples. Who needs
    equal ones, or an exact resume, takes `PairLoader`.

        stream = pair_stream("runs/demo/shards", epochs=10).batched(256)
        for batch in webdataset.WebLoader(stream, batch_size=None, num_workers=2):
            batch["anchor"], batch["candidate"]  # (256, 3, H, W) uint8

    Args:
        location: a folder or a URL (fsspec's; each shard is fetched into a bounded cache and checked).
        seed: of the order and of the draw of candidates; the draw is that of `PairDataset`.
        epochs: how often the set is read; None: without an end.
        shuffle: samples that a worker shuffles together; 0 keeps the order of the shards.
        choice: among the candidates; uniform by default.
        cache: folder of the cache for a URL.

    Raises:
        InputError: no sealed set there, or one without anchors or without candidates.
    """
    shards = ShardSet(location, cache=cache)
    if not shards.plan.shards.include_anchors:
        raise InputError(
            f"{location} holds no anchors (shards.include_anchors = false), which a stream needs; "
            "read it with PairDataset(ShardSet(location, anchors=SOURCE), seed)"
        )
    if shards.candidates == 0:
        raise InputError(f"{location} has no candidates; expected at least one per anchor")

    stages = [
        split_by_node,
        split_by_worker,
        _PairReader(shards, choice or CandidateChoice(seed)),
        _Shuffle(seed, shuffle),
        decoding(_Decoder(shards)),
    ]
    stream = FluidWrapper(_ShardOrder(shards, seed, epochs))

    for stage in stages:
        stream.append(stage)

    return stream


class _ShardOrder:
    """Yields the shards of every epoch, permuted: the same order on every rank and worker, which then share it."""

    def __init__(self, shards: ShardSet, seed: int, epochs: int | None):
        self.count = shards.plan.shard_count
        self.digest = shards.plan.digest
        self.seed = seed
        self.epochs = epochs

    def __call__(self) -> Iterator[_Place]:
        epoch = 0
        while self.epochs is None or epoch < self.epochs:
            for shard in permutation(self.count, self.digest, self.seed, epoch, "stream").tolist():
                yield _Place(epoch, shard)
            epoch += 1


class _PairReader:
    """Reads a shard's tars, one per layer, side by side; keeps each record's anchor and the candidate drawn."""

    def __init__(self, shards: ShardSet, choice: CandidateChoice):
        self.shards = shards
        self.choice = choice

    def __call__(self, places: Iterator[_Place]) -> Iterator[Sample]:
        for place in places:
            yield from self._pairs(place)

    def _pairs(self, place: _Place) -> Iterator[Sample]:
        layers = [self._records(layer, place.shard) for layer in self.shards.layers]
        positions = self.shards.plan.shard_range(place.shard)
        side_by_side = zip(*layers, strict=True)  # one record of every layer at a time
        for position, records in zip(positions, side_by_side, strict=True):
            key = records[0]["__key__"]
            drawn, weight = self.choice.draw(place.epoch, position, key, self.shards.candidates)
            layer, member = self.shards.candidate_member(drawn)
            anchor_field = self.shards.plan.image_fields[0]
            candidate_field = layer.plan.image_fields[member]
            label = self.shards.label(position)

            yield {
                "__key__": key,
                "anchor": records[0][anchor_field],
                "candidate": records[layer.number][candidate_field],
                "codecs": (self.shards.plan.shards.codec, layer.plan.shards.codec),
                "label": -1 if label is None else label,
                "weight": weight,
            }

    def _records(self, layer: LayerReader, shard: int) -> Iterator[Sample]:
        """Read the records of a shard's tar, each with all its members.

        Raises:
            WorkError: the tar is missing, damaged or cut short.
        """
        name = shard_path(HERE, layer.number, shard).as_posix()
        advice = f"run: clsp shards repair {self.shards.root}"
        found = 0

        try:
            with self.shards.store.path(name).open("rb") as file:
                for record in group_by_keys(tar_file_expander([{"url": name, "stream": file}])):
                    # webdataset itself says nothing of a tar that ends between two members.
                    absent = [field for field in layer.plan.image_fields if field not in record]
                    if absent:
                        raise WorkError(
                            f"{name}: record {record['__key__']} lacks {', '.join(absent)}; {advice}"
                        )

                    found += 1
                    yield record

        except (OSError, ValueError, tarfile.TarError) as error:
            reason = error.args[0] if isinstance(error, tarfile.TarError) else error
            raise WorkError(
                f"{self.shards.root / name} cannot be read ({reason}); {advice}"
            ) from error

        expected = len(layer.plan.shard_range(shard))
        if found != expected:
            raise WorkError(f"{name} has {found} records, the plan {expected}; {advice}")


class _Shuffle:
    """Shuffles samples in webdataset's buffer, from a seed of this rank's and worker's own."""

    def __init__(self, seed: int, size: int):
        self.seed = seed
        self.size = size

    def __call__(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        if not self.size:
            return samples
        rank, _, worker, _ = pytorch_worker_info()
        generator = random.Random(stream_seed(self.seed, rank, worker, "stream shuffle"))
        return shuffling(self.size, initial=self.size, rng=generator)(samples)


class _Decoder:
    """Decodes the two images of a sample."""

    def __init__(self, shards: ShardSet):
        self.shards = shards

    def __call__(self, sample: Sample) -> Sample:
        images: dict[str, torch.Tensor] = {}
        for name, codec in zip(("anchor", "candidate"), sample.pop("codecs"), strict=True):
            try:
                images[name] = decode_image(sample[name], codec, self.shards.size)
            except (RuntimeError, WorkError) as error:
                found = f"does not decode ({error})"
                raise self.shards.damaged(sample["__key__"], found) from error

        return {**sample, **images}
