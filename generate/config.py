"""The recipe sections `[diffusion]` and `[sampler]`."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import BeforeValidator, Field, model_validator

from ..core import Section

Timestep = Annotated[int, Field(ge=0)]

AUTOENCODER_BATCH = 8
"""Images per call of an autoencoder: of 256 pixels each takes a Stable Diffusion decoder about 200 MB in float32, and
622 GFLOP, so that eight fit anywhere and keep a GPU busy."""


def _ascending(value: Any) -> Any:
    """Put the ends of a window in ascending order: sampling goes from high timesteps to low ones."""
    is_pair = isinstance(value, list | tuple) and len(value) == 2
    return sorted(value) if is_pair else value


class TrainingSettings(Protocol):
    """Names the settings that every training of stage 1 has."""

    @property
    def steps(self) -> int:
        """Return how many there are."""
        ...

    @property
    def batch_size(self) -> int:
        """Return the images of a step, over all processes."""
        ...

    @property
    def clip_norm(self) -> float:
        """Return the largest norm of a gradient."""
        ...

    @property
    def seed(self) -> int:
        """Return what everything random goes by."""
        ...

    @property
    def workers(self) -> int:
        """Return the decoding processes per training process."""
        ...

    @property
    def precision(self) -> str:
        """Return `no` or `bf16`."""
        ...

    @property
    def checkpoint_steps(self) -> int:
        """Return the steps between two checkpoints."""
        ...

    @property
    def sample_steps(self) -> int:
        """Return the steps between two grids of images; 0 for none."""
        ...

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step, counted from 0."""
        ...


def warm_up_rate(lr: float, step: int, warmup_steps: int) -> float:
    """Return the learning rate of a step, counted from 0, that rises in so many steps and stays."""
    return lr * min(1.0, (step + 1) / max(1, warmup_steps))


def cosine_rate(lr: float, step: int, warmup_steps: int, steps: int) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then a cosine to 0 at the last step."""
    if step < warmup_steps:
        return warm_up_rate(lr, step, warmup_steps)

    share = (step - warmup_steps) / max(1, steps - warmup_steps)
    return lr * 0.5 * (1 + math.cos(math.pi * share))


class DiffusionConfig(Section):
    """Holds the settings of the diffusion model: one to load (`path`), or how to train one on the anchors.

    The defaults are the paper's; the keys below that `added` names make more of a training of minutes.

    >>> config = DiffusionConfig(steps=1000, warmup_steps=100, lr=1e-3, lr_schedule="cosine")
    >>> [config.learning_rate(step) for step in (0, 99, 550)]
    [1e-05, 0.001, 0.0005]
    """

    added: ClassVar[Mapping[str, Any]] = {
        "lr_schedule": "constant",
        "ema_warmup": False,
        "snr_gamma": 0.0,
        "norm_groups": 32,
        "condition": "none",
        "clusters": 10,
        "condition_dropout": 0.1,
        "null_class": None,
        "latent": "",
    }

    path: str = ""
    """A folder in diffusers' format or a hub id; empty: train one."""
    steps: int = Field(default=100_000, ge=1)
    batch_size: int = Field(default=128, ge=1)
    """Global: over all processes."""
    lr: float = Field(default=2e-4, gt=0)
    warmup_steps: int = Field(default=5000, ge=0)
    lr_schedule: Literal["constant", "cosine"] = "constant"
    """Behind the warm-up the rate stays as it is, or falls to 0 at the last step along a cosine."""
    snr_gamma: float = Field(default=0.0, ge=0)
    """γ of min-SNR-γ (Hang et al., ICCV 2023), a timestep's loss times `min(SNR, γ) / SNR`; 0: all count alike."""
    clip_norm: float = Field(default=1.0, gt=0)
    ema_decay: float = Field(default=0.9999, ge=0, lt=1)
    ema_warmup: bool = False
    """Let the average's decay rise up to `ema_decay` as `1 - (1 + step)^(-2/3)`, so that it forgets its first steps."""
    flip: bool = True
    """Horizontal flips, half of the time."""
    channels: tuple[int, ...] = Field(default=(128, 256, 256, 256), min_length=1)
    """Channels per resolution; each level but the last halves the side."""
    attention: tuple[bool, ...] = (False, True, False, False)
    """Which levels have self-attention; the middle always has."""
    blocks: int = Field(default=2, ge=1)
    """Residual blocks per level."""
    norm_groups: int = Field(default=32, ge=1)
    """Groups of the group normalisation; with as many as a level has channels, what a channel's mean says is lost."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    seed: int = 0
    checkpoint_steps: int = Field(default=1000, ge=1)
    """Steps between two checkpoints."""
    workers: int = Field(default=0, ge=0)
    """Decoding processes per training process."""
    precision: Literal["auto", "no", "bf16"] = "no"
    """Mixed precision of the U-Net; weights, their average and the optimizer stay float32. `auto`: bf16 where the
    device computes in it, for a new model; one that was begun keeps its own."""
    sample_steps: int = Field(default=0, ge=0)
    """Steps between two grids of images drawn from the averaged weights; 0 draws none."""
    probe_images: int = Field(default=0, ge=0)
    """With every grid, the Fréchet distance of so many images to the anchors goes into the log; 0 measures none."""
    probe_encoder: str = ""
    """Whose features that distance is in: the folder of a run, or a timm model."""
    condition: Literal["none", "clusters", "features", "labels"] = "none"
    """What the U-Net is told of an image, as its class embedding: nothing (the paper); its pseudo-class, by k-means on
    the features of `cluster_encoder`; these features themselves; or its label, which makes positives that are no longer
    self-supervised."""
    clusters: int = Field(default=10, ge=2)
    """k, the number of pseudo-classes."""
    cluster_encoder: str = ""
    """Whose features are clustered, or told: the folder of a run, `unet:DIR` (another diffusion model) or a timm
    model."""
    condition_dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of the images that are shown without their class (Ho & Salimans, 2022), so that guidance is possible."""
    null_class: int | None = Field(default=None, ge=0)
    """The class that stands for «no class» in a model of others with `condition = "labels"`, for guidance."""
    latent: str = ""
    """The autoencoder of a latent model: a folder or hub id of diffusers' AutoencoderKL or VQModel. Empty: a model that
    is trained makes pixels, and one that is there has the autoencoder that it was trained with."""

    @property
    def has_encoder(self) -> bool:
        """Return True if what the U-Net is told comes from the features of `cluster_encoder`."""
        return self.condition in ("clusters", "features")

    def decided(self, bf16: bool = False) -> "DiffusionConfig":
        """Return these settings with `auto` replaced: by bf16 if the device computes in it, else by float32."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bf16" if bf16 else "no"})

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step, counted from 0: a linear warm-up, then `lr_schedule`."""
        if self.lr_schedule == "cosine":
            return cosine_rate(self.lr, step, self.warmup_steps, self.steps)
        return warm_up_rate(self.lr, step, self.warmup_steps)

    @model_validator(mode="after")
    def _levels_agree(self):
        if len(self.channels) != len(self.attention):
            raise ValueError(
                f"channels has {len(self.channels)} levels, attention {len(self.attention)}; make them equal"
            )
        if self.probe_images and not (self.sample_steps and self.probe_encoder):
            raise ValueError(
                "probe_images needs sample_steps (how often) and probe_encoder (in whose features)"
            )
        if any(channels % self.norm_groups for channels in self.channels):
            raise ValueError(f"channels must be multiples of norm_groups = {self.norm_groups}")

        return self

    @model_validator(mode="after")
    def _clusters_have_features(self):
        if self.has_encoder and not (self.cluster_encoder or self.path):
            use = "clustered" if self.condition == "clusters" else "told"
            raise ValueError(
                f"condition = {self.condition} needs cluster_encoder, whose features are {use}: "
                "a run, unet:DIR of an unconditional diffusion model, or a timm model"
            )
        return self


class SamplerConfig(Section):
    """Holds the settings of the sampling of positives.

    The defaults are a fast setting whose positives are shown to be as good as the paper's (docs/results.md), which are
    made with DDIM, 100 steps, η = 0.1, an anchor pass per candidate and no clipping.

    >>> paper = SamplerConfig(scheduler="ddim", steps=100, eta=0.1, share_anchor=False, clip=False)
    >>> paper.decided(bf16=False).dtype
    'float32'
    """

    added: ClassVar[Mapping[str, Any]] = {
        "clip": False,
        "mixing": "linear",
        "window": None,
        "guidance": 1.0,
        "told_directions": 0,
        "told_neighbours": 0,
        "decode_batch": AUTOENCODER_BATCH,
    }

    scheduler: Literal["ddim", "unipc", "dpmsolver++"] = "unipc"
    steps: int = Field(default=16, ge=1, le=1000)
    eta: float = Field(default=0.0, ge=0, le=1)
    """Share of DDPM's noise that DDIM adds at each step; 0 is deterministic."""
    clip: bool = True
    """Clamp the x0 that is predicted at each step to [-1, 1], the range of images, or to the range that each channel
    of the anchors' latents had in training. Without it the errors of a model that was trained for less than days grow
    into flat, saturated colours. The paper's sampler does not clip."""
    weight: float = Field(default=0.1, ge=0, le=1)
    """The paper's w: the share of the sample's own bottleneck features; 1 ignores the anchor."""
    mixing: Literal["linear", "slerp"] = "linear"
    """How the two are mixed: by a weighted sum (the paper), or along the arc between them, with the anchor's features
    brought to the sample's norm (InjectFusion, WACV 2024)."""
    window: Annotated[tuple[Timestep, Timestep], BeforeValidator(_ascending)] | None = None
    """Mix at the timesteps from … to only, both included, of 0 (the image) … 999 (noise); outside of it the sample goes
    its own way, and the anchor needs no pass. None: at all."""
    guidance: float = Field(default=1.0, ge=0, le=100)
    """Scale s of classifier-free guidance, ε = ε_none + s·(ε_class - ε_none), of a model with classes; 1 is none, and
    any other value takes a second pass of sample and anchor."""
    told_directions: int = Field(default=0, ge=0)
    """Tell a model with `condition = "features"` the anchor's features only along so many directions, those in which
    anchors differ most (principal components); 0: all. Fewer make candidates that are farther from their anchor."""
    told_neighbours: int = Field(default=0, ge=0)
    """Tell such a model the mean of the features of so many other anchors, the most similar ones, in the place of the
    anchor's own; 0: its own. What is told is less of this image and more of what such images share. Which of nearly
    equal ones is the last to count may depend on the micro-batch and the device."""
    share_anchor: bool = True
    """One noising and one encoder pass of the anchor per step for all K candidates, instead of one per candidate."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    micro_batch: int = Field(default=64, ge=1)
    """Anchors per U-Net call. The images depend on it by float rounding alone."""
    decode_batch: int = Field(default=AUTOENCODER_BATCH, ge=1)
    """Images per call of a latent model's autoencoder, at most the micro-batch: what bounds the memory of decoding.
    The images depend on it by float rounding alone."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 where the device computes in it, for a new set; one that was begun keeps its own."""
    compile: bool = False
    """Compile the U-Net by torch.compile: pays on GPUs, not on CPUs; changes the last bits."""
    threads: int = Field(default=1, ge=1)
    """Threads of a process on a CPU, whose number changes the last bits; several processes use several cores."""

    def decided(self, bf16: bool = False) -> "SamplerConfig":
        """Return these settings with `auto` replaced: by bfloat16 if the device computes in it, else by float32."""
        if self.dtype != "auto":
            return self
        return self.model_copy(update={"dtype": "bfloat16" if bf16 else "float32"})

    @model_validator(mode="after")
    def _noise_fits_solver(self):
        if self.eta > 0 and self.scheduler != "ddim":
            raise ValueError(
                f"eta is {self.eta}, but {self.scheduler} is deterministic; set sampler.eta=0 or scheduler=ddim"
            )
        return self
