"""Pseudo-classes: k-means on label-free features of the anchors, kept beside the model that is trained with them.

Shape legend: N anchors, F features.
"""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from ..core import InputError, canonical_json, replacing
from ..shards import Anchor, ImageSource

FILE = "clusters.parquet"
METADATA = b"clsp"
BATCH = 4096
STARTS = 10


class ClusterFacts(BaseModel):
    """Says how pseudo-classes were made; stands as JSON in the metadata of their file.

    >>> ClusterFacts(clusters=10, seed=0, encoder="unet:diffusion", encoder_digest="11").clusters
    10
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    clusters: int
    """k."""
    seed: int
    encoder: str
    """Whose features were clustered, as it was given."""
    encoder_digest: str


@dataclass(frozen=True)
class ClusterEncoder:
    """Holds whose features are clustered, and how to have them: the command line passes an encoder of evaluation in.

    >>> encoder = ClusterEncoder("flat pixels", "11", lambda images: np.zeros((len(images), 192)))
    >>> encoder.name
    'flat pixels'
    """

    name: str
    digest: str
    """Of its weights."""
    extract: Callable[[ImageSource], np.ndarray]
    """Returns the features `(N, F)` of images."""


@dataclass(frozen=True)
class Clusters:
    """Holds the pseudo-class of every anchor, 0 … k-1, by the anchor's key and the digest of its image.

    >>> facts = ClusterFacts(clusters=2, seed=0, encoder="none", encoder_digest="")
    >>> clusters = Clusters(facts, ("train_00000000", "train_00000001"), ("aa", "bb"), np.array([1, 0]))
    >>> anchor = Anchor(index=0, key="train_00000000", image=np.zeros((8, 8, 3), np.uint8), label=None, digest="aa")
    >>> clusters.of([anchor])
    [1]
    """

    facts: ClusterFacts
    keys: tuple[str, ...]
    image_digests: tuple[str, ...]
    assigned_N: np.ndarray
    """`(N,)` int64."""

    @cached_property
    def digest(self) -> str:
        """Return the SHA-256 of the assignments: of every key, image and pseudo-class."""
        total = hashlib.sha256()
        for key, image, cluster in zip(
            self.keys, self.image_digests, self.assigned_N.tolist(), strict=True
        ):
            total.update(f"{key} {image} {cluster}\n".encode())
        return total.hexdigest()

    @cached_property
    def _places(self) -> dict[str, int]:
        return {key: place for place, key in enumerate(self.keys)}

    def of(self, anchors: Sequence[Anchor]) -> list[int]:
        """Return the pseudo-classes of anchors.

        Raises:
            InputError: one of them was not clustered, or was another image then.
        """
        keys = [anchor.key for anchor in anchors]
        digests = [anchor.digest for anchor in anchors]
        return self._assigned(keys, digests).tolist()

    def of_source(self, anchors: ImageSource) -> np.ndarray:
        """Return the pseudo-classes `(N,)` of all anchors of a source, whose images are read and not decoded.

        Raises:
            InputError: as `of` does.
        """
        places = range(len(anchors))
        keys = [anchors.key(place) for place in places]
        digests = [anchors.image_digest(place) for place in places]
        return self._assigned(keys, digests)

    def _assigned(self, keys: Sequence[str], digests: Sequence[str]) -> np.ndarray:
        places = self.places_of(keys)
        for key, digest, place in zip(keys, digests, places, strict=True):
            if digest != self.image_digests[place]:
                raise InputError(
                    f"anchor {key} is another image than the one that was clustered; "
                    "use the images that the diffusion model was trained on, or train another model"
                )

        return self.assigned_N[places]

    def places_of(self, keys: Sequence[str]) -> list[int]:
        """Return the rows of anchors by their keys.

        Raises:
            InputError: one of them was not clustered.
        """
        places = []
        for key in keys:
            place = self._places.get(key)
            if place is None:
                raise InputError(
                    f"anchor {key} has no pseudo-class: the diffusion model was trained with those of "
                    f"{len(self.keys)} other anchors; use the images that it was trained on, or train another model"
                )
            places.append(place)

        return places


def cluster_features(features_NF: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Assign each of N images to one of `count` clusters by k-means on its features; `(N,)` int64.

    The features are standardised and scaled to length 1 before (`unit_features`). scikit-learn's MiniBatchKMeans, from
    the best of 10 starts, on one thread.

    Raises:
        InputError: a cluster is left without an image.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # k-means; fewer distinct images than clusters make a warning there and an error here
    starts: Any = STARTS
    means = MiniBatchKMeans(
        count,
        random_state=seed,
        batch_size=BATCH,
        n_init=starts,
    )
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        assigned_N = means.fit_predict(unit_features(features_NF)).astype(np.int64)

    # Every cluster needs images, for the U-Net learns nothing of an empty one
    sizes = np.bincount(assigned_N, minlength=count)
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        raise InputError(
            f"{len(empty)} of {count} clusters are empty, such as number {empty[0]}; "
            f"choose diffusion.clusters <= {count - len(empty)}, or another diffusion.cluster_encoder"
        )

    return assigned_N


def unit_features(features_NF: np.ndarray) -> np.ndarray:
    """Return features standardised and then scaled to length 1, `(N, F)` float32.

    Neither what all images share nor a few strong features decide then.
    """
    features_NF = features_NF.astype(np.float64)
    deviation_F = features_NF.std(axis=0)
    centred_NF = features_NF - features_NF.mean(axis=0)
    standard_NF = centred_NF / np.where(deviation_F > 0, deviation_F, 1)

    length_N1 = np.linalg.norm(standard_NF, axis=1, keepdims=True)
    return (standard_NF / np.where(length_N1 > 0, length_N1, 1)).astype(np.float32)


def check_cluster_count(anchors: ImageSource, count: int) -> None:
    """Refuse more clusters than anchors.

    Raises:
        InputError: there are more.
    """
    if count > len(anchors):
        raise InputError(
            f"diffusion.clusters is {count}, and there are {len(anchors)} anchors; choose fewer clusters"
        )


def own_classes(anchors: ImageSource, encoder: ClusterEncoder, seed: int) -> Clusters:
    """Make every anchor a pseudo-class of its own, whose number is its place: for a U-Net that is told its features."""
    count = len(anchors)
    return _clusters(anchors, encoder, seed, np.arange(count), count)


def make_clusters(anchors: ImageSource, encoder: ClusterEncoder, count: int, seed: int) -> Clusters:
    """Assign every anchor to one of `count` pseudo-classes by its features.

    Raises:
        InputError: more clusters than anchors, or a cluster is left without one.
    """
    check_cluster_count(anchors, count)
    assigned_N = cluster_features(encoder.extract(anchors), count, seed)
    return _clusters(anchors, encoder, seed, assigned_N, count)


def _clusters(
    anchors: ImageSource, encoder: ClusterEncoder, seed: int, assigned_N: np.ndarray, count: int
) -> Clusters:
    """Return pseudo-classes of anchors, with how they were made."""
    facts = ClusterFacts(
        clusters=count, seed=seed, encoder=encoder.name, encoder_digest=encoder.digest
    )
    places = range(len(anchors))
    keys = tuple(anchors.key(place) for place in places)
    digests = tuple(anchors.image_digest(place) for place in places)
    return Clusters(facts, keys, digests, assigned_N)


def write_clusters(folder: Path, clusters: Clusters) -> None:
    """Write the pseudo-classes into a model's folder, a row per anchor."""
    table = pa.table(
        {
            "key": pa.array(clusters.keys, pa.string()),
            "image": pa.array(clusters.image_digests, pa.string()),
            "cluster": pa.array(clusters.assigned_N, pa.int32()),
        }
    )
    facts = canonical_json(clusters.facts.model_dump())
    with replacing(folder / FILE) as file:
        pq.write_table(table.replace_schema_metadata({METADATA: facts}), file, compression="zstd")


def read_clusters(path: Path) -> Clusters:
    """Read the pseudo-classes in a file.

    Raises:
        InputError: it is not such a file.
    """
    try:
        table = pq.read_table(path)
        facts = ClusterFacts.model_validate_json((table.schema.metadata or {}).get(METADATA, b""))
        assigned_N = table["cluster"].to_numpy().astype(np.int64)
        keys = tuple(table["key"].to_pylist())
        images = tuple(table["image"].to_pylist())
    except (OSError, pa.ArrowException, KeyError, ValidationError, ValueError) as error:
        raise InputError(
            f"{path} holds no pseudo-classes of clsp diffusion train ({str(error).splitlines()[0]}); "
            "fetch the model's folder again"
        ) from error

    outside = (assigned_N < 0) | (assigned_N >= facts.clusters)
    if outside.any():
        raise InputError(
            f"{path}: cluster {assigned_N[outside][0]} of {facts.clusters}; fetch the model's folder again"
        )

    return Clusters(facts, keys, images, assigned_N)
