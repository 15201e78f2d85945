"""Describe what is known of a set as a whole: the measures, as their file beside the set holds them."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

CLEARLY = 0.005
"""What a mean cosine has to be above another one."""


class _Facts(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class SuspiciousPair(_Facts):
    """Holds a candidate and the image that it is nearest to, of those that it was not made for.

    >>> pair = SuspiciousPair(
    ...     key="train_00000001", position=1, candidate=2, cosine=0.99, nearest="test_00000007", nearest_position=7
    ... )
    >>> pair.nearest
    'test_00000007'
    """

    key: str
    """Of its anchor."""
    position: int
    """Of its anchor in the set."""
    candidate: int
    cosine: float
    nearest: str
    """The key of that image."""
    nearest_position: int


class QualityFacts(_Facts):
    """Holds the measures of a set as a whole. A file of another version may lack some, or have more.

    >>> facts = QualityFacts(frechet_distance=1.5, precision=0.9, means={"cosine": 0.5})
    >>> facts.numbers()
    {'frechet_distance': 1.5, 'precision': 0.9}
    """

    auroc: Mapping[str, float] = {}
    """Of each label-free measure: the area under the ROC curve of right against wrong candidates.

    Above 0.5 the measure's better end has more right ones. Empty without labels, or where all are right or wrong.
    """
    auroc_error: Mapping[str, float] = {}
    """The standard errors of these, over the anchors; without those that a single anchor decides."""
    cosine_histogram: Mapping[str, list[float]] = {}
    """Cosines to the anchor of candidates and of ordinary views: shares per bin from -1 to 1."""
    frechet_distance: float | None = None
    images: Mapping[str, int] = {}
    """How many anchors and candidates there are, and how many of either are compared in pairs."""
    kernel_distance: float | None = None
    kernel_distance_std: float | None = None
    labelled_anchors: int | None = None
    """How many anchors have a label: what the probe, `agreement` and `auroc` are of; absent without labels."""
    means: Mapping[str, float] = {}
    """The mean of every measure of a candidate, where it is known."""
    precision: float | None = None
    probe_top1: float | None = None
    """Top-1 in percent of a probe on anchors that it did not see; absent without labels, None where it cannot be."""
    recall: float | None = None
    suspicious: Mapping[str, list[SuspiciousPair]] = {}
    """Per measure the candidates that look most like copies, the likest first."""

    @property
    def too_easy_note(self) -> str | None:
        """Return a sentence that calls candidates too easy, where they are; None where they are not, or nobody knows.

        They are if they lie clearly nearer to their anchor than an ordinary view of it does: docs/does-it-help.md.
        """
        own = self.means.get("cosine")
        ordinary = self.means.get("augmentation_cosine")
        if own is None or ordinary is None or own < ordinary + CLEARLY:
            return None

        return (
            f"Too easy: candidates lie nearer to their anchor (cosine {own:.3f}) than an augmented view of it does "
            f"({ordinary:.3f}), so they can teach little that views do not; docs/does-it-help.md says what to change."
        )

    def content(self) -> Mapping[str, Any]:
        """Return what the file holds: the measures that were given, and no default."""
        return self.model_dump(exclude_unset=True)

    def area_text(self, measure: str) -> str:
        """Return the area under a measure's ROC curve, with its standard error where that is known."""
        text = f"{self.auroc[measure]:.3f}"
        error = self.auroc_error.get(measure)
        return text if error is None else f"{text} ± {error:.3f}"

    def numbers(self) -> dict[str, int | float]:
        """Return the measures that are plain numbers."""
        return {
            name: value for name, value in self.content().items() if isinstance(value, int | float)
        }


class QualityResult(_Facts):
    """Holds a file of measures: of what they are, and by what encoder they were made.

    >>> QualityResult(name="simclr", encoder="a-s0", data={}, result=QualityFacts(recall=0.8)).result.recall
    0.8
    """

    name: str
    """Of the scores that go with them."""
    encoder: str
    data: Any
    """The identity of the set's content."""
    result: QualityFacts
