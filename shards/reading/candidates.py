"""Draw the candidates that a sample gets in an epoch: uniform, or among those that a measure chooses."""

from dataclasses import dataclass

import numpy as np

from ...core import InputError, stream_key
from ..format.layout import scores_name, scores_path
from .measures import Keep, Measure, WeightMap, find_measure
from .scores import read_scores_of
from .shard_set import ShardSet


@dataclass(frozen=True)
class CandidateChoice:
    """Draws candidates: a pure function of (seed, epoch, key), the number of candidates and the scores.

    `allowed_NK` says which may be drawn and `weights_NK` what each counts; None: all of them, and 1.

    >>> choice = CandidateChoice(0, allowed_NK=np.array([[False, True, False], [False, False, False]]))
    >>> choice.draw(epoch=5, position=0, key="train_00000000", candidates=3)
    (1, 1.0)
    >>> choice.draw(epoch=5, position=1, key="train_00000001", candidates=3)
    (0, 0.0)
    >>> choice.summary
    '1 of 6 candidates may be drawn; 1 of 2 anchors have none and take no part'
    """

    seed: int
    allowed_NK: np.ndarray | None = None
    weights_NK: np.ndarray | None = None

    @property
    def summary(self) -> str:
        """Say how many candidates may be drawn, and how many anchors have none; empty where all may be."""
        if self.allowed_NK is None:
            return ""

        anchors = len(self.allowed_NK)
        without = anchors - int(self.allowed_NK.any(axis=1).sum())
        kept = f"{int(self.allowed_NK.sum())} of {self.allowed_NK.size} candidates may be drawn"
        if not without:
            return kept

        return f"{kept}; {without} of {anchors} anchors have none and take no part"

    def draw(self, epoch: int, position: int, key: str, candidates: int) -> tuple[int, float]:
        """Draw a candidate and return its number and weight, which is 0 where none of the sample's is allowed."""
        drawn, weights = self.draw_several(epoch, position, key, candidates, 1)
        return drawn[0], weights[0]

    def draw_several(
        self, epoch: int, position: int, key: str, candidates: int, count: int
    ) -> tuple[list[int], list[float]]:
        """Draw `count` different candidates and return their numbers and weights; the first is that of `draw`.

        A sample of which fewer are allowed takes those there are. They come again in the places that are left, with
        weight 0, and weigh more for it, so that a mean over the `count` is the mean over the different ones.

        >>> choice = CandidateChoice(0, allowed_NK=np.array([[False, True, False, True]]))
        >>> choice.draw_several(epoch=5, position=0, key="train_00000000", candidates=4, count=3)
        ([1, 3, 1], [1.5, 1.5, 0.0])
        """
        # The numbers that may be drawn, and the places of some among them
        allowed = None
        there = candidates
        if self.allowed_NK is not None:
            allowed = np.flatnonzero(self.allowed_NK[position])
            there = len(allowed)
            if not there:
                return [0] * count, [0.0] * count

        different = min(count, there)
        drawn = draw_candidates(self.seed, epoch, key, there, different)
        if allowed is not None:
            drawn = [int(allowed[place]) for place in drawn]

        # What each counts
        weights = [1.0] * different
        if self.weights_NK is not None:
            weights = [float(self.weights_NK[position, number]) for number in drawn]

        # Fewer than are asked for
        if different < count:
            weights = [weight * count / different for weight in weights]
            weights += [0.0] * (count - different)
            drawn = [drawn[place % different] for place in range(count)]

        return drawn, weights


def draw_candidate(seed: int, epoch: int, key: str, candidates: int) -> int:
    """Draw a sample's candidate in an epoch, uniform over 0 … candidates-1: a pure function of (seed, epoch, key)."""
    return stream_key(seed, epoch, key, "candidate") % candidates


def draw_candidates(seed: int, epoch: int, key: str, candidates: int, count: int) -> list[int]:
    """Draw `count` different candidates of a sample in an epoch, the first by `draw_candidate`.

    Each of the others is uniform over those that are not drawn yet, so more of them leave the earlier ones as they are.
    """
    drawn = [draw_candidate(seed, epoch, key, candidates)]
    for place in range(1, count):
        left = [number for number in range(candidates) if number not in drawn]
        drawn.append(left[stream_key(seed, epoch, key, "candidate", place) % len(left)])

    return drawn


# The choice by scores


def choice_by_scores(
    shards: ShardSet,
    seed: int,
    name: str,
    measure: str,
    minimum: float | None = None,
    weighted: bool = False,
    keep: Keep | None = None,
    weight_map: WeightMap = "value",
) -> CandidateChoice:
    """Make the choice by a measure of `scores/NAME.parquet`.

    Args:
        minimum: candidates below are not drawn; None draws all.
        weighted: the measure gives the weight.
        keep: which candidates may be drawn, see `kept_candidates`; None: all. With a minimum both hold.
        weight_map: how the measure becomes a weight, see `mapped_weights`.

    Raises:
        InputError: the set has no such scores or measure, or scores for fewer candidates or of another set; more
            candidates are to be kept than there are; no candidate is left; or the measure gives no weights.
    """
    values_NK = _read_measure(shards, name, measure)
    found = find_measure(measure)
    if np.isnan(values_NK).all():
        raise InputError(f"no candidate has a value of {measure}; choose another measure")

    # Which may be drawn
    allowed_NK = None
    if minimum is not None:
        allowed_NK = values_NK >= minimum
        if not allowed_NK.any():
            raise InputError(
                f"no candidate has {measure} >= {minimum}, the highest is {np.nanmax(values_NK):.4g}; lower it"
            )

    if keep is not None:
        kept_NK = _checked_keep(shards, values_NK, found, keep)
        allowed_NK = kept_NK if allowed_NK is None else allowed_NK & kept_NK
        if not allowed_NK.any():
            raise InputError(
                f"no candidate has {measure} >= {minimum} and is kept by keep = {keep}; leave out one of the two"
            )

    # What each counts
    weights_NK = None
    if weighted:
        weights_NK = mapped_weights(values_NK, found, weight_map)
        _check_weights(weights_NK if allowed_NK is None else weights_NK[allowed_NK], found)

    return CandidateChoice(seed, allowed_NK, weights_NK)


def _read_measure(shards: ShardSet, name: str, measure: str) -> np.ndarray:
    """Read a measure of the set's candidates `(N, K)`, from the set or its cache."""
    # The scores
    path = scores_path(shards.root, name).relative_to(shards.root).as_posix()
    if path not in shards.manifest.files:
        names = [scores_name(file) for file in shards.manifest.files]
        there = sorted(name for name in names if name is not None)
        found = f"scores {', '.join(there)}" if there else "no scores"
        raise InputError(
            f"{shards.root} has {found}, expected {name}; run: clsp shards score SET --name {name}"
        )

    # The measure
    scores = read_scores_of(shards, shards.store.path(path))
    if measure not in scores:
        raise InputError(
            f"scores {name} have the measures {', '.join(scores)}; expected one of them, found {measure}; set another "
            "measure, or score the set again under another name"
        )

    # Of every candidate: a set may have grown since, and may be opened with fewer layers
    values_NK = scores[measure]
    if values_NK.shape[1] < shards.candidates:
        raise InputError(
            f"scores {name} are of {values_NK.shape[1]} candidates, the set has {shards.candidates}; score it again "
            "under another name"
        )

    return values_NK[:, : shards.candidates]


def _checked_keep(
    shards: ShardSet, values_NK: np.ndarray, measure: Measure, keep: Keep
) -> np.ndarray:
    """Return `(N, K)`: True for the candidates that are kept, at least one of the set."""
    if isinstance(keep, int) and keep > shards.candidates:
        raise InputError(
            f"keep = {keep}: the set {shards.root} has {shards.candidates} candidates per anchor; keep at most these"
        )

    kept_NK = kept_candidates(values_NK, measure, keep)
    if isinstance(keep, tuple) and not kept_NK.any():
        values = f"from {np.nanmin(values_NK):.4g} to {np.nanmax(values_NK):.4g}"
        raise InputError(
            f"no candidate has {measure.name} in keep = {list(keep)}; the values go {values}, widen it"
        )

    return kept_NK


def kept_candidates(values_NK: np.ndarray, measure: Measure, keep: Keep) -> np.ndarray:
    """Return `(N, K)`: True for the candidates that are kept. One without a value, NaN, never is.

    Args:
        keep: an integer m keeps the m best candidates of every anchor, of equal ones those of lower number. A share
            between 0 and 1 keeps the best of all candidates of the set, down to numpy's quantile: those that are as
            good as the last one, too, so a measure of few values may keep more. A pair (low, high) keeps the
            candidates whose value is in that range, both ends included, whichever end is the better.

    >>> values_NK = np.array([[0.1, 0.5, 0.9], [0.2, 0.3, 0.3]], np.float32)
    >>> kept_candidates(values_NK, find_measure("margin"), 1).tolist()
    [[False, False, True], [False, True, False]]
    >>> kept_candidates(values_NK, find_measure("margin"), 0.4).tolist()  # three of six, and one as good as the third
    [[False, True, True], [False, True, True]]
    >>> kept_candidates(values_NK, find_measure("margin"), (0.25, 0.5)).tolist()
    [[False, True, False], [False, True, True]]
    """
    known_NK = ~np.isnan(values_NK)

    # A range
    if isinstance(keep, tuple):
        with np.errstate(over="ignore"):  # an end may be more than a float32 holds
            low, high = np.asarray(keep).astype(values_NK.dtype)
        return (values_NK >= low) & (values_NK <= high)

    # The best of each anchor
    goodness_NK = _goodness(values_NK, measure)
    if isinstance(keep, int):
        order_NK = np.argsort(-goodness_NK, axis=1, kind="stable")
        best_NK = np.zeros_like(known_NK)
        np.put_along_axis(best_NK, order_NK[:, :keep], True, axis=1)
        return best_NK & known_NK

    # The best of the set
    last = np.quantile(goodness_NK, 1 - keep, method="higher")
    return (goodness_NK >= last) & known_NK


def mapped_weights(
    values_NK: np.ndarray, measure: Measure, weight_map: WeightMap = "value"
) -> np.ndarray:
    """Return what each candidate counts, `(N, K)` float32: a monotone map of the measure, 0 where it has no value.

    Args:
        weight_map: with v the value of a candidate, negated where lower is better,

            - `value`: v itself, of measures of which higher is better;
            - `rank`: (number of the set's candidates with v' ≤ v) / (number of the set's candidates), which is in
              (0, 1], and 1 for the best;
            - `exp`: min(1, exp((v - median) / σ)) with the median and the standard deviation σ over the set: the
              better half counts 1, and the others the less the worse they are.

    Raises:
        InputError: the measure does not go with the map.

    >>> values_NK = np.array([[1, 2, 900], [1, 3, 5]], np.float32)
    >>> mapped_weights(values_NK, find_measure("anchor_rank"), "rank").round(2).tolist()
    [[1.0, 0.6700000166893005, 0.17000000178813934], [1.0, 0.5, 0.33000001311302185]]
    """
    known_NK = ~np.isnan(values_NK)
    if weight_map == "value":
        if measure.better == "lower":
            raise InputError(
                f"weights by {measure.name} itself would count the worst candidates most, for lower is better; set "
                "weight_map to rank or exp"
            )
        return np.where(known_NK, values_NK, 0).astype(np.float32)

    goodness_NK = _goodness(values_NK, measure)
    if weight_map == "rank":
        weights_NK = np.searchsorted(np.sort(goodness_NK, axis=None), goodness_NK, side="right")
        weights_NK = weights_NK / goodness_NK.size
    else:
        known_M = goodness_NK[known_NK].astype(np.float64)
        if not np.isfinite(known_M).all():
            raise InputError(f"{measure.name} has infinite values; set weight_map to rank")

        worse_NK = np.maximum(np.median(known_M) - goodness_NK, 0)
        spread = known_M.std() or 1.0  # all are equal, and none is worse
        weights_NK = np.exp(-worse_NK / spread)

    return np.where(known_NK, weights_NK, 0).astype(np.float32)


def _goodness(values_NK: np.ndarray, measure: Measure) -> np.ndarray:
    """Return the values so that more is better, and least where there is none."""
    signed_NK = values_NK if measure.better == "higher" else -values_NK
    return np.where(np.isnan(values_NK), -np.inf, signed_NK).astype(values_NK.dtype)


def _check_weights(weights_M: np.ndarray, measure: Measure) -> None:
    """Raise InputError unless these are weights."""
    if weights_M.min() < 0:
        raise InputError(
            f"{measure.name} goes down to {weights_M.min():.4g}; weights must not be negative: keep only candidates "
            "above 0, or set weight_map to rank or exp"
        )
    if not weights_M.any():
        raise InputError(
            f"{measure.name} is 0 for every candidate that may be drawn, so none would count; set another measure"
        )
    if np.isinf(weights_M).any():
        raise InputError(f"{measure.name} has infinite values; set weight_map to rank")
