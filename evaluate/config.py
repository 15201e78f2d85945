"""The recipe sections `[linear_eval]`, `[knn]` and `[transfer]`."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from ..shards import Section


class LinearEvalConfig(Section):
    """Linear evaluation and the labelled sets of all evaluations; the defaults are the paper's protocol."""

    protocol: Literal["clsp", "sweep"] = "clsp"
    """`clsp`: the paper's, with the keys below. `sweep`: every pair of `sweep_lr` and `sweep_weight_decay` is a head of
    its own (momentum 0.9, cosine, standardised features); the best on a part of train is trained on all of it."""
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
    sweep_lr: tuple[PositiveFloat, ...] = Field(default=(0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0), min_length=1)
    sweep_weight_decay: tuple[NonNegativeFloat, ...] = Field(default=(0.0, 1e-6, 1e-5, 1e-4, 1e-3), min_length=1)
    precision: Literal["auto", "no", "bf16"] = "auto"
    """Of feature extraction, in all evaluations: `auto` is bf16 where the processor computes in it, else float32."""


class KnnConfig(Section):
    """Weighted k-nearest-neighbour vote in cosine similarity (Wu et al. 2018)."""

    k: tuple[PositiveInt, ...] = Field(default=(20, 200), min_length=1)
    temperature: float = Field(default=0.07, gt=0)
    replica_k: tuple[PositiveInt, ...] = Field(default=(5, 10, 20, 50, 100, 200), min_length=1)
    """Of which `--replica` reports the best one on the test images, as the paper's authors did."""
