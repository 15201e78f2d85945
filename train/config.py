"""The recipe sections `[pretrain]` and `[pretrain.synthetic]`."""

from typing import Any, Literal

from pydantic import Field

from ..shards import Section

Ratio = tuple[float, float, float]


class AugmentConfig(Section):
    """SimCLR's augmentations; every parameter is drawn per image."""

    crop_scale: float = Field(default=0.08, gt=0, le=1)
    """Smallest share of the area that RandomResizedCrop keeps."""
    flip: bool = True
    brightness: float = Field(default=0.4, ge=0)
    contrast: float = Field(default=0.4, ge=0)
    saturation: float = Field(default=0.4, ge=0)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    jitter_probability: float = Field(default=0.8, ge=0, le=1)
    grey_probability: float = Field(default=0.2, ge=0, le=1)


class SyntheticConfig(Section):
    """The term that pulls view 1 and a third view together: `λ·mean(2 - 2·cos(z_1, z_3))`."""

    weight: float = Field(default=1.0, ge=0)
    """λ; 0 reads no candidate."""
    source: Literal["shards", "augmentation", "none"] = "shards"
    """The third view: a candidate of the shard set, a third ordinary view of the anchor (the control), or none."""
    probability: float = Field(default=1.0, ge=0, le=1)
    """Share of the samples, drawn per step, that take part in the term."""
    warmup: float = Field(default=0.0, ge=0)
    """Epochs over which λ rises linearly from 0."""


class PretrainConfig(Section):
    """Stage 2; the defaults are the paper's CLSP-SimCLR on CIFAR-10."""

    method: str = "simclr"
    epochs: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=1024, ge=2)
    """Global: over all processes."""
    seed: int = Field(default=0, ge=0)
    backbone: str = "resnet18"
    """Any timm model."""
    backbone_kwargs: dict[str, Any] = Field(default={})
    stem: Literal["cifar", "default"] = "cifar"
    """`cifar` gives a ResNet a first convolution of 3x3, stride 1, padding 1, and no max-pool."""
    batch_norm: Literal["joint", "per_view"] = "per_view"
    """One pass over all views together, or one each with running statistics from real views only."""
    projector_hidden: int = Field(default=4096, ge=1)
    projector_out: int = Field(default=256, ge=1)
    temperature: float = Field(default=0.2, gt=0)
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: float = Field(default=0.5, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup_epochs: float = Field(default=10, ge=0)
    warmup_lr: float = Field(default=1e-3, ge=0)
    """Where the linear warm-up of the learning rate starts."""
    mean: Ratio = (0.5, 0.5, 0.5)
    std: Ratio = (0.5, 0.5, 0.5)
    augment: AugmentConfig = AugmentConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    precision: Literal["no", "bf16"] = "no"
    workers: int = Field(default=2, ge=0)
    """Decoding processes per training process."""
    knn_epochs: int = Field(default=0, ge=0)
    """Every so many epochs kNN accuracy on the recipe's labelled images goes to the log and the report; 0: never."""
    checkpoint_epochs: int = Field(default=10, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)

    @property
    def third_view(self) -> Literal["shards", "augmentation", "none"]:
        """Where the third view comes from; `none` also where λ is 0."""
        return self.synthetic.source if self.synthetic.weight > 0 and self.synthetic.probability > 0 else "none"

    @property
    def run_name(self) -> str:
        """`simclr`, `simclr+shards` (CLSP-SimCLR) or `simclr+augmentation` (the third-view control)."""
        return self.method if self.third_view == "none" else f"{self.method}+{self.third_view}"
