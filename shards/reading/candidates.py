"""Draw the candidate that a sample gets in an epoch: uniform, or among those that a score lets through."""

from dataclasses import dataclass

import numpy as np

from ...core import InputError, stream_key
from ..format.layout import scores_name, scores_path
from .scores import read_scores
from .shard_set import ShardSet


@dataclass(frozen=True)
class CandidateChoice:
    """Draws candidates: a pure function of (seed, epoch, key), the number of candidates and the scores.

    `allowed_NK` says which may be drawn and `weights_NK` what each counts; None: all of them, and 1.
    """

    seed: int
    allowed_NK: np.ndarray | None = None
    weights_NK: np.ndarray | None = None

    def draw(self, epoch: int, position: int, key: str, candidates: int) -> tuple[int, float]:
        """Draw a candidate and return its number and weight, which is 0 where none of the sample's is allowed."""
        weight = 1.0
        if self.allowed_NK is None:
            drawn = draw_candidate(self.seed, epoch, key, candidates)
        else:
            allowed = np.flatnonzero(self.allowed_NK[position])
            if not len(allowed):
                return 0, 0.0
            drawn = int(allowed[draw_candidate(self.seed, epoch, key, len(allowed))])

        if self.weights_NK is not None:
            weight = float(self.weights_NK[position, drawn])

        return drawn, weight


def choice_by_scores(
    shards: ShardSet, seed: int, name: str, measure: str, minimum: float | None, weighted: bool
) -> CandidateChoice:
    """Make the choice by a measure of `scores/NAME.parquet`.

    Args:
        minimum: candidates below are not drawn; None draws all.
        weighted: the measure is the weight.

    Raises:
        InputError: the set has no such scores or measure, or scores for fewer candidates; no candidate is left; or
            a weight is negative.
    """
    # Read the measure, from the set or its cache.
    path = scores_path(shards.root, name).relative_to(shards.root).as_posix()
    if path not in shards.manifest.files:
        names = [scores_name(file) for file in shards.manifest.files]
        there = sorted(name for name in names if name is not None)
        found = f"scores {', '.join(there)}" if there else "no scores"
        raise InputError(
            f"{shards.root} has {found}, expected {name}; run: clsp shards score SET --name {name}"
        )

    scores = read_scores(shards.store.path(path), len(shards))
    if measure not in scores:
        raise InputError(
            f"scores {name} have the measures {', '.join(scores)}; expected one of them, found {measure}"
        )

    values_NK = scores[measure]
    if values_NK.shape[1] < shards.candidates:
        raise InputError(
            f"scores {name} are of {values_NK.shape[1]} candidates, the set has {shards.candidates}; score it again "
            "under another name"
        )

    # Choose by it.
    values_NK = values_NK[:, : shards.candidates]
    allowed_NK = None if minimum is None else values_NK >= minimum
    if allowed_NK is not None and not allowed_NK.any():
        raise InputError(
            f"no candidate has {measure} >= {minimum}, the highest is {values_NK.max():.4g}; lower it"
        )
    if weighted and values_NK.min() < 0:
        raise InputError(
            f"{measure} goes down to {values_NK.min():.4g}; weights must not be negative"
        )

    return CandidateChoice(seed, allowed_NK, values_NK if weighted else None)


def draw_candidate(seed: int, epoch: int, key: str, candidates: int) -> int:
    """Draw a sample's candidate in an epoch, uniform over 0 … candidates-1: a pure function of (seed, epoch, key)."""
    return stream_key(seed, epoch, key, "candidate") % candidates
