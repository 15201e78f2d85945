"""The recipe section `[autoencoder]`."""

from typing import Literal

from pydantic import Field, model_validator

from ..core import Section
from .config import cosine_rate

LPIPS_WEIGHT = 1.0
"""The weight of the perceptual term in Rombach et al. (2022)."""


class AutoencoderConfig(Section):
    """Holds the settings of an autoencoder that is trained on the anchors alone.

    The defaults are the autoencoder of latent diffusion that makes 32x32 latents of 256x256 images ("KL-f8", Rombach et
    al. 2022), without its adversarial term.

    >>> config = AutoencoderConfig(steps=1000, warmup_steps=100, lr=1e-3)
    >>> [config.learning_rate(step) for step in (0, 99, 550)]
    [1e-05, 0.001, 0.0005]
    """

    steps: int = Field(default=100_000, ge=1)
    batch_size: int = Field(default=16, ge=1)
    """Global: over all processes."""
    lr: float = Field(default=1e-4, gt=0)
    """Behind the warm-up it falls to 0 at the last step along a cosine, in the place of an average of the weights."""
    warmup_steps: int = Field(default=1000, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    channels: tuple[int, ...] = Field(default=(128, 256, 512, 512), min_length=1)
    """Channels per resolution; each level but the last halves the side."""
    latent_channels: int = Field(default=4, ge=1)
    blocks: int = Field(default=2, ge=1)
    """Residual blocks per level of the encoder; the decoder has one more."""
    norm_groups: int = Field(default=32, ge=1)
    """Groups of the group normalisation."""
    kl_weight: float = Field(default=1e-6, ge=0)
    """Weight of the KL divergence, a sum over an image's latents, against the sum of |x - y| over its pixels and
    colours."""
    perceptual: str = ""
    """In whose features images are compared, too: a timm model, or the folder of one or of a run; empty: in none."""
    perceptual_weight: float = Field(default=LPIPS_WEIGHT, gt=0)
    """Weight of that distance against the mean of |x - y|."""
    flip: bool = True
    """Horizontal flips, half of the time."""
    seed: int = 0
    precision: Literal["auto", "no", "bf16"] = "no"
    """Mixed precision; the weights and the optimizer stay float32. `auto`: bf16 where the device computes in it, for a
    new autoencoder; one that was begun keeps its own."""
    workers: int = Field(default=0, ge=0)
    """Decoding processes per training process."""
    checkpoint_steps: int = Field(default=1000, ge=1)
    """Steps between two checkpoints."""
    sample_steps: int = Field(default=1000, ge=0)
    """Steps between two grids of reconstructions, with whose PSNR in the log; 0 makes none."""

    def decided(self, bf16: bool = False) -> "AutoencoderConfig":
        """Return these settings with `auto` replaced: by bf16 if the device computes in it, else by float32."""
        if self.precision != "auto":
            return self
        return self.model_copy(update={"precision": "bf16" if bf16 else "no"})

    def learning_rate(self, step: int) -> float:
        """Return the rate of a step, counted from 0: a linear warm-up, then a cosine."""
        return cosine_rate(self.lr, step, self.warmup_steps, self.steps)

    @model_validator(mode="after")
    def _groups_divide_channels(self):
        if any(channels % self.norm_groups for channels in self.channels):
            raise ValueError(f"channels must be multiples of norm_groups = {self.norm_groups}")
        return self

    @model_validator(mode="after")
    def _weight_has_a_model(self):
        if self.perceptual_weight != LPIPS_WEIGHT and not self.perceptual:
            raise ValueError(
                f"perceptual_weight is {self.perceptual_weight}, but perceptual names no model; "
                "set autoencoder.perceptual to a timm model or a folder, or leave both out"
            )
        return self
