"""The recipe sections `[pretrain]` and `[pretrain.synthetic]`."""

import math
from collections.abc import Collection, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from ..core import Section
from ..core.run_name import LABEL_PATTERN, WITH_CANDIDATES, RunName
from ..shards.reading.measures import Keep, WeightMap, find_measure

Ratio = tuple[float, float, float]
SyntheticLoss = Literal["alignment", "mean_target", "multi_positive", "robust"]

MEASURE = "margin"
FORMER_MEASURE = "agreement"
"""The default of earlier versions, which their runs recorded also where they went by no measure."""
KEPT = (
    "a whole number >= 1 (the best of each anchor), a share between 0 and 1 (the best of the set) or a range "
    "[low, high] of the measure"
)


class AugmentConfig(Section):
    """Holds the settings of SimCLR's augmentations; every parameter is drawn per image.

    >>> AugmentConfig(crop_scale=0.08).weakened().crop_scale
    0.2
    """

    crop_scale: float = Field(default=0.08, gt=0, le=1)
    """Smallest share of the area that RandomResizedCrop keeps."""
    flip: bool = True
    brightness: float = Field(default=0.4, ge=0)
    contrast: float = Field(default=0.4, ge=0)
    saturation: float = Field(default=0.4, ge=0)
    hue: float = Field(default=0.1, ge=0, le=0.5)
    jitter_probability: float = Field(default=0.8, ge=0, le=1)
    grey_probability: float = Field(default=0.2, ge=0, le=1)
    blur_probability: float = Field(default=0.0, ge=0, le=1)
    """Gaussian blur of a tenth of the image, σ 0.1 … 2."""
    solarise_probability: float = Field(default=0.0, ge=0, le=1)
    """Values of one half and more are inverted."""

    def weakened(self) -> "AugmentConfig":
        """Return AdaInf's weaker augmentation: crops of a fifth at least, jitter half as strong and half as often."""
        halved = {
            name: getattr(self, name) / 2
            for name in ("brightness", "contrast", "saturation", "hue")
        }
        weaker = {
            "crop_scale": max(0.2, self.crop_scale),
            "jitter_probability": self.jitter_probability / 2,
        }
        return self.model_copy(update={**halved, **weaker})


class SyntheticConfig(Section):
    """Holds the settings of the term that pulls view 1 and a third view together: `λ·mean(2 - 2·cos(z_1, z_3))`.

    >>> PretrainConfig(synthetic=SyntheticConfig(source="augmentation")).run_name
    'simclr+augmentation'
    >>> four = SyntheticConfig(candidates=4, loss="multi_positive")  # four positives more for each anchor
    >>> PretrainConfig(synthetic=four, label="m4").run_name
    'simclr+shards@m4'
    >>> best = SyntheticConfig(scores="resnet", measure="margin", keep=2)  # the two best of each anchor
    >>> PretrainConfig(synthetic=best).run_name
    'simclr+shards'
    """

    weight: float = Field(default=1.0, ge=0)
    """λ; 0 reads no candidate."""
    source: Literal["shards", "augmentation", "inflation", "none"] = "shards"
    """The third view: a candidate of the shard set, a third ordinary view of the anchor (the control), or none.
    `inflation` has no third view: candidates are unpaired anchors among the real ones, with weaker augmentation."""
    candidates: int = Field(default=1, ge=1)
    """M, the third views a step: different candidates of the anchor, or in the control as many more ordinary views."""
    loss: SyntheticLoss = "alignment"
    """The paper's, the mean over the M; towards the mean of the M projections; SynCLR's, in which a sample's views are
    each other's positives and all others negatives; or RINCE's, which bounds the pull of a wrong positive. The last two
    go by `pretrain.temperature`; docs/methods.md has the formulas."""
    robust_q: float = Field(default=0.1, gt=0, le=1)
    """RINCE's q: near 0 it is InfoNCE, at 1 wrong positives pull least."""
    robust_lambda: float = Field(default=0.01, gt=0, le=1)
    """RINCE's λ, the weight of all pairs against that of the positive one."""
    probability: float = Field(default=1.0, ge=0, le=1)
    """Share of the samples, drawn per step, that take part in the term."""
    warmup: float = Field(default=0.0, ge=0)
    """Epochs over which λ rises linearly from 0."""
    real_weight: float = Field(default=10.0, gt=0)
    """With `inflation`: how often a real image is drawn for each time that one of the K candidates is."""
    scores: str = ""
    """Name of scores of the set (`clsp shards score --name`); empty: all candidates are alike."""
    measure: str = MEASURE
    """The one of their measures that candidates are chosen and weighted by; see `clsp shards score`."""
    keep: Keep | None = None
    """The candidates that may be drawn: the best m of each anchor, the best share of the whole set, or those in a range
    of the measure, [low, high]. A sample that has none left takes no part."""
    minimum: float | None = None
    """Candidates below are not drawn; a sample that has none left takes no part."""
    weighted: bool = False
    """The measure of the candidate drawn gives the sample's weight in the term."""
    weight_map: WeightMap = "value"
    """How: the measure itself, the share of the set's candidates that are not better, or 1 for the better half and less
    for the others (`mapped_weights` has the formulas)."""
    allow_labels: bool = False
    """Allow a measure that uses labels; the run's name says that it went by one."""

    added: ClassVar[Mapping[str, Any]] = {
        "candidates": 1,
        "loss": "alignment",
        "robust_q": 0.1,
        "robust_lambda": 0.01,
        "keep": None,
        "weight_map": "value",
    }

    @field_validator("keep", mode="before")
    @classmethod
    def _keep_is_one_of_three(cls, value: Any) -> Any:
        if value is None:
            return None
        if isinstance(value, list | tuple):
            return _range(value)

        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        is_share = isinstance(value, float) and 0 < value < 1
        if not is_count and not is_share:
            raise ValueError(f"found {value!r}, expected {KEPT}")

        return value

    @field_serializer("keep", when_used="json")
    def _keep_in_json(self, keep: Keep | None) -> Any:
        """Write the open end of a range as a text, for JSON knows no infinity."""
        if not isinstance(keep, tuple):
            return keep
        return [end if math.isfinite(end) else str(end) for end in keep]

    @model_validator(mode="after")
    def _scores_are_named(self):
        if self.goes_by_measure and not self.scores:
            raise ValueError(
                "synthetic.keep, synthetic.minimum and synthetic.weighted need synthetic.scores, the name of scores"
            )
        if self.weighted and self.source == "inflation":
            raise ValueError(
                "synthetic.weighted is for pairs, and inflation has none; use synthetic.keep"
            )
        if self.weight_map != "value" and not self.weighted:
            raise ValueError(
                f"synthetic.weight_map = {self.weight_map} maps no weights; set synthetic.weighted=true, too"
            )
        return self

    @model_validator(mode="after")
    def _the_loss_has_a_use(self):
        if self.source == "inflation" and (self.candidates > 1 or self.loss != "alignment"):
            raise ValueError(
                "synthetic.candidates and synthetic.loss are of third views, and inflation has none; leave them out"
            )
        is_tuned = any(
            getattr(self, key) != self.added[key] for key in ("robust_q", "robust_lambda")
        )
        if is_tuned and self.loss != "robust":
            raise ValueError(
                f"synthetic.robust_q and .robust_lambda are of synthetic.loss = robust, and it is {self.loss}; leave "
                "them out"
            )
        return self

    @property
    def goes_by_measure(self) -> bool:
        """Return True if a measure chooses or weights the candidates."""
        return self.keep is not None or self.minimum is not None or self.weighted

    @property
    def goes_by_labels(self) -> bool:
        """Return True if a measure that uses labels chooses or weights the candidates."""
        return self.goes_by_measure and find_measure(self.measure).uses_labels

    def recorded(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Return the settings as runs record them.

        A permission makes no run another one, so it is left out; and a measure that nobody chose and nothing goes by is
        recorded as earlier versions did.
        """
        record = super().recorded({*leave_out, "allow_labels"})
        if self.measure == MEASURE and not self.goes_by_measure:
            record["measure"] = FORMER_MEASURE

        return record


def _range(ends: list[Any] | tuple[Any, ...]) -> tuple[float, float]:
    """Read the range of a measure; an end without a bound is an infinity, in JSON its name."""
    found = [float(end) if end in ("inf", "-inf") else end for end in ends]
    are_numbers = all(
        isinstance(end, int | float) and not isinstance(end, bool) and not math.isnan(end)
        for end in found
    )
    if len(found) != 2 or not are_numbers or found[0] > found[1]:
        raise ValueError(f"found {list(ends)!r}, expected {KEPT}, low <= high")

    low, high = found
    return float(low), float(high)


class PretrainConfig(Section):
    """Holds the settings of stage 2; the defaults are the paper's CLSP-SimCLR on CIFAR-10.

    >>> PretrainConfig(method="mocov2plus", batch_size=512, lr=0.3).run_name
    'mocov2plus+shards'
    """

    method: str = "simclr"
    label: str = Field(default="", pattern=LABEL_PATTERN)
    """Joins the run's name, to tell runs apart that differ in other settings: `m4` gives `simclr+shards@m4`."""
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
    init: str = ""
    """Whose weights the backbone starts from: a run, the folder of a timm model, or timm's name or hub id of one; they
    must fit to the last key. Empty: random ones. Take over its `mean` and `std` too: it was made for such images."""
    projector_hidden: int = Field(default=4096, ge=1)
    projector_out: int = Field(default=256, ge=1)
    projector_layers: int = Field(default=2, ge=1)
    projector_norm: bool = False
    """Normalise behind every linear layer of the projector, as NNCLR and All4One do."""
    predictor_hidden: int = Field(default=4096, ge=1)
    """Of the methods with a predictor."""
    head_norm: Literal["batch", "layer"] = "batch"
    """The normalisation in projector and predictor."""
    queue_size: int = Field(default=32768, ge=1)
    """Of the methods with a queue; a multiple of the global batch."""
    momentum_start: float = Field(default=0.99, ge=0, le=1)
    momentum_end: float = Field(default=0.999, ge=0, le=1)
    """Of the momentum encoder, along a cosine."""
    sync_batch_norm: bool = False
    """Statistics over all processes (GPUs only)."""
    accumulation: int = Field(default=1, ge=1)
    """Parts of a batch of which one at a time has its activations in memory; batch norms see a part at a time."""
    contrast: Literal["batch", "part"] = "batch"
    """With `accumulation`: contrast over the whole global batch, which takes a second pass over the images (GradCache);
    or within a part, as versions did that knew no other way."""
    compile: bool = False
    """Compile the backbone by torch.compile."""
    temperature: float = Field(default=0.2, gt=0)
    decoupled: bool = False
    """Leave the positive out of the denominator of SimCLR's loss (DCL)."""
    invariance_weight: float = Field(default=25.0, ge=0)
    variance_weight: float = Field(default=25.0, ge=0)
    covariance_weight: float = Field(default=1.0, ge=0)
    """Of VICReg's three terms."""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: float = Field(default=0.5, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup_epochs: float = Field(default=10, ge=0)
    warmup_lr: float = Field(default=1e-3, ge=0)
    """Where the linear warm-up of the learning rate starts."""
    schedule: Literal["cosine", "wsd"] = "cosine"
    """Behind the warm-up the learning rate falls along a cosine to 0 at the last step; or it stays as it is and falls
    within the last `decay_epochs` only (`wsd`: warm-up, stable, decay): such a run can be given more epochs."""
    decay_epochs: int = Field(default=10, ge=1)
    """Of the schedule `wsd`: lr·(1 - sqrt(share of them that is over)), as Hägele et al. (NeurIPS 2024) found best."""
    mean: Ratio = (0.5, 0.5, 0.5)
    std: Ratio = (0.5, 0.5, 0.5)
    augment: AugmentConfig = AugmentConfig()
    synthetic: SyntheticConfig = SyntheticConfig()
    precision: Literal["no", "bf16"] = "no"
    workers: int = Field(default=2, ge=0)
    """Decoding processes per training process."""
    cache: Literal["none", "memory", "device", "auto"] = "auto"
    """Where decoded pixels are kept, so that no image is decoded twice: `memory` is mapped files in the cache folder,
    shared by all processes and later runs; `device` these and an array on the GPU; `auto` is `memory` where they have
    at most 2 GiB, half of the free memory and half of the free disk. It changes nothing but the speed."""
    trackers: tuple[
        Literal["tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml"], ...
    ] = ("tensorboard",)
    """Where metrics go besides log.jsonl; TensorBoard's files lie in the run's folder."""
    size: int = Field(default=0, ge=0)
    """Side of the views in pixels, at most the set's: crops are cut out of the whole images. 0 takes `anchors.size`
    where that is given, else the set's."""
    knn_epochs: int = Field(default=0, ge=0)
    """Every so many epochs kNN accuracy on the recipe's labelled images goes to the log and the report; 0: never."""
    checkpoint_epochs: int = Field(default=10, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)

    added: ClassVar[Mapping[str, Any]] = {
        "cache": "none",
        "init": "",
        "contrast": "part",
        "schedule": "cosine",
        "decay_epochs": 10,
        "label": "",
        "size": 0,
        "decoupled": False,
        "invariance_weight": 25.0,
        "variance_weight": 25.0,
        "covariance_weight": 1.0,
    }

    @model_validator(mode="after")
    def _schedule_fits(self):
        needed = self.warmup_epochs + self.decay_epochs
        if self.schedule == "wsd" and needed > self.epochs:
            raise ValueError(
                f"schedule = wsd needs {needed:g} epochs for warmup_epochs and decay_epochs, epochs is {self.epochs}"
            )
        return self

    def recorded(self, leave_out: Collection[str] = ()) -> dict[str, Any]:
        """Return the settings as runs record them.

        Where pixels are kept makes no run another one, nor does `contrast` where a batch is one part.
        """
        unused = {"cache"}
        if self.accumulation == 1:
            unused.add("contrast")

        return super().recorded({*leave_out, *unused})

    def view_size(self, set_size: int) -> int:
        """Return the side of the views of a set's images, and so of the images that the backbone is made for."""
        return self.size or set_size

    @property
    def cached_parts(self) -> int:
        """Return the parts of a batch that is contrasted as a whole."""
        return self.accumulation if self.contrast == "batch" else 1

    @property
    def stable_epochs(self) -> int | None:
        """Return the epoch behind which the rate of the schedule `wsd` falls; None with a cosine."""
        return self.epochs - self.decay_epochs if self.schedule == "wsd" else None

    @property
    def extra(self) -> Literal["shards", "augmentation", "inflation", "none"]:
        """Return the source of the synthetic term or the inflation; `none` also where λ is 0."""
        off = self.synthetic.source != "inflation" and not (
            self.synthetic.weight and self.synthetic.probability
        )
        return "none" if off else self.synthetic.source

    @property
    def third_view(self) -> Literal["shards", "augmentation", "none"]:
        """Return the source of the third view."""
        return "none" if self.extra == "inflation" else self.extra

    @property
    def augmentation(self) -> AugmentConfig:
        """Return the augmentation in use."""
        return self.augment.weakened() if self.extra == "inflation" else self.augment

    @property
    def run_name(self) -> str:
        """Return `simclr`, `simclr+shards` (CLSP-SimCLR), `simclr+augmentation` (the third-view control), …

        `simclr+shards+labels` is a run whose candidates were chosen by a measure that uses labels, `simclr+shards@m4`
        one with the label `m4`.
        """
        return str(RunName(self.method, self.extra, self.goes_by_labels, self.label))

    @property
    def goes_by_measure(self) -> bool:
        """Return True if a measure chooses or weights the candidates that the run draws."""
        return self.extra in WITH_CANDIDATES and self.synthetic.goes_by_measure

    @property
    def goes_by_labels(self) -> bool:
        """Return True if labels choose or weight the candidates that the run draws."""
        return self.extra in WITH_CANDIDATES and self.synthetic.goes_by_labels
