"""Name the measures of a candidate: what each says, which end of it is the better one, and which need labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Keep = int | float | tuple[float, float]
"""Which candidates a measure keeps: the best of each anchor, a share of the set or a range; see `kept_candidates`."""
WeightMap = Literal["value", "rank", "exp"]
"""How a measure becomes a weight, see `mapped_weights`."""


@dataclass(frozen=True)
class Measure:
    """Describes a measure of candidates: a column of `scores/NAME.parquet`.

    >>> MEASURES["anchor_rank"].better
    'lower'
    >>> find_measure("sharpness")  # a column that somebody added: nothing else is known of it
    Measure(name='sharpness', text='a measure of your own', better='higher', uses_labels=False)
    """

    name: str
    text: str
    """What it says, for people."""
    better: Literal["higher", "lower"] = "higher"
    """The end at which candidates are the better positives."""
    uses_labels: bool = False
    """True where it is computed from the anchors' labels: a run that chooses by it is not self-supervised."""


_KNOWN = (
    Measure("cosine", "to its anchor: low is a hard positive"),
    Measure(
        "anchor_rank",
        "rank of its own anchor among all anchors, seen from the candidate: 1 is the nearest",
        better="lower",
    ),
    Measure(
        "margin",
        "cosine to its anchor less that to the nearest other one: below 0 another anchor is nearer",
    ),
    Measure("diversity", "1 - mean cosine to the anchor's other candidates"),
    Measure(
        "label_probability",
        "that a probe trained on the real anchors gives to the anchor's label",
        uses_labels=True,
    ),
    Measure("agreement", "1 where that probe's class is the anchor's label", uses_labels=True),
    Measure(
        "nearest_train",
        "cosine to the nearest anchor of the set other than its own: near 1 is a copy (memorisation)",
        better="lower",
    ),
    Measure(
        "nearest_test",
        "cosine to the nearest test image: near 1 is a copy of it (leakage)",
        better="lower",
    ),
)
MEASURES: Mapping[str, Measure] = MappingProxyType({measure.name: measure for measure in _KNOWN})
"""The measures of `clsp shards score`, by name."""


def find_measure(name: str) -> Measure:
    """Return the measure of that name; one that people added themselves is label-free, and more of it is better."""
    return MEASURES.get(name, Measure(name, "a measure of your own"))
