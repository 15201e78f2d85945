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
        found = []
        for anchor in anchors:
            place = self._places.get(anchor.key)
            if place is None:
                raise InputError(
                    f"anchor {anchor.key} has no pseudo-class: the diffusion model was trained with those of "
                    f"{len(self.keys)} other anchors; use the images that it was trained on, or train another model"
                )
            if anchor.digest != self.image_digests[place]:
                raise InputError(
                    f"anchor {anchor.key} is another image than the one that was clustered; "
                    "use the images that the diffusion model was trained on, or train another model"
                )
            found.append(int(self.assigned_N[place]))

        return found


def cluster_features(features_NF: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Assign each of N images to one of `count` clusters by k-means on its features; `(N,)` int64.

    The features are standardised and then scaled to length 1, so that neither what all images share nor a few strong
    features decide. scikit-learn's MiniBatchKMeans, from the best of 10 starts, on one thread.

    Raises:
        InputError: a cluster is left without an image.
    """
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    # Standardise, and scale to length 1
    features_NF = features_NF.astype(np.float64)
    deviation_F = features_NF.std(axis=0)
    standard_NF = (features_NF - features_NF.mean(axis=0)) / np.where(
        deviation_F > 0, deviation_F, 1
    )
    length_N1 = np.linalg.norm(standard_NF, axis=1, keepdims=True)
    unit_NF = (standard_NF / np.where(length_N1 > 0, length_N1, 1)).astype(np.float32)

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
        assigned_N = means.fit_predict(unit_NF).astype(np.int64)

    # Every cluster needs images, for the U-Net learns nothing of an empty one
    sizes = np.bincount(assigned_N, minlength=count)
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        raise InputError(
            f"{len(empty)} of {count} clusters are empty, such as number {empty[0]}; "
            f"choose diffusion.clusters <= {count - len(empty)}, or another diffusion.cluster_encoder"
        )

    return assigned_N


def make_clusters(anchors: ImageSource, encoder: ClusterEncoder, count: int, seed: int) -> Clusters:
    """Assign every anchor to one of `count` pseudo-classes by its features.

    Raises:
        InputError: more clusters than anchors, or a cluster is left without one.
    """
    if count > len(anchors):
        raise InputError(
            f"diffusion.clusters is {count}, and there are {len(anchors)} anchors; choose fewer clusters"
        )

    facts = ClusterFacts(
        clusters=count, seed=seed, encoder=encoder.name, encoder_digest=encoder.digest
    )
    assigned_N = cluster_features(encoder.extract(anchors), count, seed)
    keys = []
    digests = []
    for anchor in anchors:
        keys.append(anchor.key)
        digests.append(anchor.digest)

    return Clusters(facts, tuple(keys), tuple(digests), assigned_N)


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
