"""The space that a latent diffusion model works in: its autoencoder, and the range of the anchors' latents.

Shape legend: C channels of a latent.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline
from pydantic import BaseModel, ConfigDict, ValidationError

from ..core import InputError, first_fault
from ..shards import LatentPlan
from .autoencoder import (
    BESIDE,
    PLACES,
    Autoencoder,
    AutoencoderFacts,
    load_autoencoder,
    read_autoencoder,
)
from .pretrained import model_file
from .schedulers import Bounds

RECORD = "latent.json"
MARK = "_latent"
"""A note in `model_index.json`: it tells a model on the hub from one of pixels without asking for another file."""
ADVICE = (
    "name its autoencoder: --set diffusion.latent=DIR or hub id (for extend and repair: --latent), "
    "or copy it to vae in the model's folder"
)


class LatentRecord(BaseModel):
    """Says in a model's folder which latents its U-Net was trained on: by which autoencoder, and their range.

    >>> space = {"autoencoder": "stabilityai/sd-vae-ft-mse", "digest": "11", "scaling": 0.18215}
    >>> record = LatentRecord(**space, channels=1, factor=8, size=256, ranges=[(-4, 5)], deviations=[1])
    >>> record.ranges
    ((-4.0, 5.0),)
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    autoencoder: str
    """Where it was: a folder or a hub id."""
    digest: str
    """Of its configuration and weights."""
    scaling: float
    shift: float = 0.0
    channels: int
    factor: int
    size: int
    """Of the images, in pixels."""
    ranges: tuple[tuple[float, float], ...]
    """The lowest and the highest value of every channel, over all anchors."""
    deviations: tuple[float, ...]
    """The standard deviation of every channel."""


@dataclass(frozen=True)
class LatentSpace:
    """Holds the autoencoder of a latent model, and what values its latents have.

    >>> from clsp.generate.example import make_example_autoencoder
    >>> space = LatentSpace(make_example_autoencoder(), ranges=((-1, 1), (-2, 3), (-1, 1), (0, 1)))
    >>> space.bounds("cpu").highest.flatten().tolist()
    [1.0, 3.0, 1.0, 1.0]
    """

    autoencoder: Autoencoder
    ranges: tuple[tuple[float, float], ...] | None = None
    """The lowest and the highest value of every channel; None for a model of others, who do not say."""

    @property
    def facts(self) -> dict[str, Any]:
        """Return what is a part of the model's digest."""
        return {"autoencoder": self.autoencoder.digest, "ranges": self.ranges}

    @property
    def plan(self) -> LatentPlan:
        """Return what a plan records of it."""
        config = self.autoencoder.config
        return LatentPlan(
            origin=config.origin,
            digest=self.autoencoder.digest,
            scaling=config.scaling,
            shift=config.shift or None,
            ranges=None if self.ranges is None else list(self.ranges),
        )

    def bounds(self, device: torch.device | str) -> Bounds:
        """Return the lowest and the highest values `(1, C, 1, 1)` of latents."""
        assert self.ranges is not None
        ranges_C2 = torch.tensor(self.ranges, dtype=torch.float32).to(device)
        lowest_C, highest_C = ranges_C2.unbind(dim=1)
        return Bounds(lowest_C[None, :, None, None], highest_C[None, :, None, None])


@dataclass(frozen=True)
class LatentModelConfig:
    """Says which autoencoder goes with a U-Net, before the weights of either are loaded."""

    autoencoder: AutoencoderFacts
    record: LatentRecord | None

    def load(self, path: str) -> LatentSpace:
        """Load the autoencoder of the model at `path`.

        Raises:
            InputError: it is not the one that the model was trained with.
        """
        autoencoder = load_autoencoder(self.autoencoder)
        if self.record is None:
            return LatentSpace(autoencoder)

        if autoencoder.digest != self.record.digest:
            raise InputError(
                f"autoencoder {self.autoencoder.path} has the digest {autoencoder.digest}, the diffusion model {path} "
                f"was trained with {self.record.autoencoder} of {self.record.digest}; {ADVICE}"
            )
        return LatentSpace(autoencoder, self.record.ranges)


def read_latent_model(
    path: str, unet_config: Mapping[str, Any], given: str = ""
) -> LatentModelConfig | None:
    """Return the autoencoder that goes with the U-Net of a model; None for a model of pixels.

    It is the one that is given, else the one that lies beside the U-Net, else the one that the model was trained with.

    Args:
        path: of the model, a folder or a hub id.
        given: the folder or hub id of an autoencoder (`diffusion.latent`).

    Raises:
        InputError: a model of latents without an autoencoder, or with one of another kind or channel count.
    """
    # What speaks for latents
    pipeline = _pipeline_config(path)
    beside = [part for part in BESIDE if part in pipeline or (Path(path) / part).is_dir()]
    is_ldm = str(pipeline.get("_class_name", "")).startswith("LDM")
    channels = (unet_config.get("in_channels", 3), unet_config.get("out_channels", 3))

    # What it was trained on, if clsp diffusion train made it
    record = None
    if Path(path).exists() or MARK in pipeline or (channels != (3, 3) and not is_ldm):
        record = _read_record(path)
    if not (given or beside or is_ldm or record):
        return None

    # Its autoencoder
    if given:
        autoencoder = read_autoencoder(given)
    elif beside:
        autoencoder = _own_autoencoder(path, path, beside)
    elif record:
        autoencoder = _own_autoencoder(path, record.autoencoder)
    else:
        raise InputError(
            f"diffusion model {path} makes latents, and no autoencoder lies beside its U-Net; {ADVICE}"
        )

    if channels != (autoencoder.channels, autoencoder.channels):
        raise InputError(
            f"autoencoder {autoencoder.path} has latents of {autoencoder.channels} channels, "
            f"the diffusion model {path} has {channels[0]} in and {channels[1]} out; "
            f"{ADVICE}, or leave it empty for a model of pixels"
        )
    return LatentModelConfig(autoencoder, record)


def _pipeline_config(path: str) -> dict[str, Any]:
    try:
        config: Any = DDPMPipeline.load_config(path)
        return dict(config)
    except OSError:
        return {}  # a U-Net and a scheduler without a pipeline around them


def _read_record(path: str) -> LatentRecord | None:
    """Read what lies beside a U-Net about its latents; None where there is nothing."""
    file = model_file(path, RECORD)
    if file is None:
        return None

    try:
        return LatentRecord.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else error
        raise InputError(
            f"{path}/{RECORD} does not say what the model's latents are ({reason}); fetch the folder again"
        ) from error


def _own_autoencoder(
    path: str, where: str, places: Sequence[str | None] = PLACES
) -> AutoencoderFacts:
    """Return the autoencoder of a model from where the model says it is.

    Raises:
        InputError: it is not there.
    """
    try:
        return read_autoencoder(where, places)
    except InputError as error:
        raise InputError(
            f"diffusion model {path} makes latents, and its autoencoder is not where it was ({error}); {ADVICE}"
        ) from error
