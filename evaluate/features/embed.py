"""Write the features of any images to a Parquet file, a row per image: the work of `clsp embed`.

Shape legend: B batch, F features.
"""

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

from ...core import InputError, Report, canonical_json, replacing
from ...shards import Anchor, AnchorsConfig, ImageSource, ShardSet
from ...shards.format.layout import MANIFEST, PLAN
from ..config import Precision
from .encoder import Encoder, encoder_digest
from .extract import ahead, read_anchors
from .shard_features import anchor_records

METADATA = b"clsp"
"""The key of the record in the file's metadata, `pyarrow.parquet.read_metadata(path).metadata`."""
ROW_GROUP = 4096
"""Images per row group: what is held in memory, and whole batches of either device's size."""


class EmbeddedSource(BaseModel):
    """Says of which images a file's features are.

    >>> from clsp.shards import AnchorsConfig
    >>> source = describe_source(ImageSource(AnchorsConfig(limit=10)))
    >>> source.path, source.split, source.images, source.size
    ('digits', 'train', 10, 8)
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    path: str
    """As it was given: what `anchors.path` takes, or the folder or URL of a shard set."""
    split: str
    label: str
    """The column of the class numbers that was asked for; empty: found as usual."""
    images: int
    size: int
    """The side length in pixels that the images were brought to when they were read."""
    resize: str
    digest: str
    """Of the whole source, over the identities of its images; see `ImageSource.digest`."""
    plan: str | None = None
    """The digest of the shard set's plan, for the anchors of a set."""


class FeaturesRecord(BaseModel):
    """Says what the features of a file are, in JSON in its metadata under `clsp`.

    >>> import tempfile
    >>> from clsp.shards.example import make_example_set
    >>> encoder = Encoder(torch.nn.Flatten(), {"input_size": (3, 8, 8), "mean": [0], "std": [1]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     shards = make_example_set(Path(folder) / "set").root
    ...     images = open_images(str(shards), AnchorsConfig(), encoder.size)
    ...     path = Path(folder) / "features.parquet"
    ...     _ = write_features(path, encoder, "flat pixels", images)
    ...     read_record(path).encoder, pq.read_table(path).schema.field("feature").type.list_size
    ('flat pixels', 192)
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    encoder: str
    """As it was given: a run, a folder of a timm model, or timm's name of one."""
    encoder_digest: str
    """The SHA-256 of its weights; the name of a model that timm fetches."""
    precision: Precision
    """float32 (`no`) or bfloat16, while the features were computed; they are float32 in the file."""
    source: EmbeddedSource
    versions: dict[str, str]

    @property
    def job(self) -> dict[str, Any]:
        """Return what decides the features, without the versions."""
        return self.model_dump(exclude={"versions"})


def open_images(
    location: str, anchors: AnchorsConfig, size: int, report: Report | None = None
) -> ImageSource | ShardSet:
    """Open the images of any source, or the anchors of a sealed shard set.

    Args:
        location: what `anchors.path` takes; or the folder or URL of a shard set, whose anchors are taken as they are.
        anchors: the other keys for the images of a source, and the source of a set without anchors.
        size: of the encoder's images, which those of a source are brought to unless `anchors.size` says otherwise.
        report: called with (files seen, 0) while a folder is walked.

    Raises:
        InputError: there are no such images.
    """
    if not location:
        raise InputError(
            "no source of images; expected a folder, a parquet file, a hub id, digits or a shard set"
        )

    # A shard set, or a source
    folder = Path(location)
    if "://" in location or (folder / PLAN).exists() or (folder / MANIFEST).exists():
        shards = ShardSet(location)
        if shards.plan.shards.include_anchors:
            return shards
        return ShardSet(location, ImageSource(anchors, report))

    geometry = {"path": location, "size": anchors.size or size}
    return ImageSource(anchors.model_copy(update=geometry), report)


def describe_source(images: ImageSource | ShardSet) -> EmbeddedSource:
    """Describe images; the digest of a source is computed unless it is known."""
    if isinstance(images, ShardSet):
        source = images.plan.source
        return EmbeddedSource(
            path=images.store.location,
            split=source.split,
            label="",
            images=len(images),
            size=images.size,
            resize=source.resize,
            digest=source.digest,
            plan=images.plan.digest,
        )

    config = images.config
    return EmbeddedSource(
        path=config.path,
        split=config.split,
        label=config.label,
        images=len(images),
        size=images.size,
        resize=config.resize,
        digest=images.digest,
    )


def make_record(encoder: Encoder, name: str, images: ImageSource | ShardSet) -> FeaturesRecord:
    """Return the record of the features of images by the encoder that `load_encoder` loads by that name."""
    return FeaturesRecord(
        encoder=name,
        encoder_digest=encoder_digest(name),
        precision=encoder.precision,
        source=describe_source(images),
        versions={"clsp": version("clsp")},
    )


def read_record(path: Path) -> FeaturesRecord:
    """Return what the features in a file are.

    Raises:
        InputError: the file was not written by `write_features`.
    """
    try:
        metadata = pq.read_metadata(path).metadata or {}
        return FeaturesRecord.model_validate_json(metadata.get(METADATA, b""))
    except (OSError, ValueError) as error:  # no Parquet, or no record in it
        raise InputError(
            f"{path} exists and holds no features of clsp embed; choose another --out"
        ) from error


def write_features(
    path: Path,
    encoder: Encoder,
    name: str,
    images: ImageSource | ShardSet,
    report: Report | None = None,
) -> FeaturesRecord:
    """Write the features of images to a Parquet file, which is there when it is whole; return its record.

    The columns are `key`, `index` (in the source), `label` (null without one) and `feature`, F numbers in float32. On
    one machine equal images and weights give equal bytes. A row group is in memory at a time.

    Args:
        name: of the encoder, as `load_encoder` took it.
        report: called with (images done, all images).

    Raises:
        InputError: an image does not decode.
    """
    blank = np.zeros((1, encoder.size, encoder.size, 3), np.uint8)
    schema = _schema(encoder(blank).shape[1])
    source_digest = hashlib.blake2b(digest_size=16)
    group = _RowGroup()
    done = 0

    # Statistics and dictionaries would only cost: no two values are equal
    options: dict[str, Any] = {
        "compression": "zstd",
        "write_statistics": False,
        "use_dictionary": False,
    }
    with replacing(path) as file, pq.ParquetWriter(file, schema, **options) as writer:
        for anchors in ahead(_batches(images, encoder.batch)):
            features_BF = encoder(np.stack([anchor.image for anchor in anchors]))
            group.add(anchors, features_BF)
            for anchor in anchors:
                source_digest.update(bytes.fromhex(anchor.digest))

            done += len(anchors)
            if group.size >= ROW_GROUP or done == len(images):
                writer.write_table(group.table(schema), row_group_size=group.size)
                group = _RowGroup()

            if report:
                report(done, len(images))

        # The source need not be read once more for its digest
        if isinstance(images, ImageSource) and len(images) == images.source_count:
            images.use_known_digest(source_digest.hexdigest())

        record = make_record(encoder, name, images)
        writer.add_key_value_metadata({METADATA: canonical_json(record.model_dump())})

    return record


class _RowGroup:
    """Collects the rows of a row group."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.indices: list[int] = []
        self.labels: list[int | None] = []
        self.features: list[torch.Tensor] = []

    @property
    def size(self) -> int:
        """Return the number of rows."""
        return len(self.keys)

    def add(self, anchors: list[Anchor], features_BF: torch.Tensor) -> None:
        """Add a row per image."""
        for anchor in anchors:
            self.keys.append(anchor.key)
            self.indices.append(anchor.index)
            self.labels.append(anchor.label)

        self.features.append(features_BF)

    def table(self, schema: pa.Schema) -> pa.Table:
        """Return the rows as a table."""
        numbers = torch.cat(self.features).numpy().reshape(-1)
        width = schema.field("feature").type.list_size
        columns = [
            pa.array(self.keys, pa.string()),
            pa.array(self.indices, pa.int64()),
            pa.array(self.labels, pa.int64()),
            pa.FixedSizeListArray.from_arrays(pa.array(numbers), width),
        ]
        return pa.table(columns, schema=schema)


def _schema(width: int) -> pa.Schema:
    return pa.schema(
        [
            ("key", pa.string()),
            ("index", pa.int64()),
            ("label", pa.int64()),
            ("feature", pa.list_(pa.float32(), width)),
        ]
    )


def _batches(images: ImageSource | ShardSet, batch: int) -> Iterator[list[Anchor]]:
    if isinstance(images, ShardSet):
        return anchor_records(images, batch)
    return read_anchors(images, batch)
