"""The recipe sections `[linear_eval]` and `[knn]`."""

from pydantic import Field

from ..shards import Section


class LinearEvalConfig(Section):
    """Linear evaluation and the labelled sets of all evaluations; the defaults are the paper's protocol."""

    test_path: str = ""
    """Source of the test images; empty: the anchors' own path. Training images are the anchors'."""
    test_split: str = "test"
    train_limit: int = Field(default=0, ge=0)
    """Use the first images only; 0 uses all."""
    test_limit: int = Field(default=0, ge=0)
    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=1.0, gt=0)
    milestones: tuple[int, ...] = (60, 80)
    """Epochs after which the learning rate falls to a tenth."""
    flip: bool = True
    """Train on horizontal flips, half of the time."""


class KnnConfig(Section):
    """Weighted k-nearest-neighbour vote in cosine similarity (Wu et al. 2018)."""

    k: tuple[int, ...] = Field(default=(20, 200), min_length=1)
    temperature: float = Field(default=0.07, gt=0)
