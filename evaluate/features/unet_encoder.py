"""Take a diffusion U-Net as an encoder, by the name `unet:DIR`: the DDAE baseline (Xiang et al., ICCV 2023).

Shape legend: N images, F features.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ...core import InputError, Report, permutation
from ...shards import ImageSource
from ..config import Precision
from ..probes.logistic import fit
from .checkpoint import UNET
from .encoder import Encoder
from .extract import ahead, hold_out

if TYPE_CHECKING:
    from ...generate import DiffusionModel
    from ...generate.unet_features import UNetFeatures

NAME = re.compile(
    r"unet:(?P<path>.+?)(@(?P<block>[a-z]+\d*):(?P<timestep>\d+)|(?P<chosen>@chosen))?"
)
SYNTAX = "unet:DIR, unet:DIR@BLOCK:TIMESTEP (such as @up1:50) or, with labels, unet:DIR@chosen"

TIMESTEPS = (1, 10, 30, 50, 100, 200, 300)
"""What is tried of them where labels choose."""
IMAGES = 3000
IMAGES_PER_CLASS = 20
HELD_OUT = 0.2
PROBE_L2 = 1.0


@dataclass(frozen=True)
class UNetName:
    """Holds the parts of a name such as `unet:runs/digits/diffusion@up1:50`.

    >>> name = parse_unet_name("unet:runs/digits/diffusion@up1:50")
    >>> name.path, name.block, name.timestep, name.is_chosen
    ('runs/digits/diffusion', 'up1', 50, False)
    >>> name.at("mid", 10).text
    'unet:runs/digits/diffusion@mid:10'
    """

    path: str
    """A folder or a hub id."""
    block: str | None = None
    """None: the default, see `default_block`."""
    timestep: int | None = None
    is_chosen: bool = False
    """Block and timestep are to be chosen with labels."""

    def at(self, block: str, timestep: int) -> "UNetName":
        """Return the name of another block and timestep of this U-Net."""
        return replace(self, block=block, timestep=timestep, is_chosen=False)

    @property
    def text(self) -> str:
        """Return the name as it is given."""
        if self.is_chosen:
            return f"{UNET}{self.path}@chosen"
        place = "" if self.block is None else f"@{self.block}:{self.timestep}"
        return f"{UNET}{self.path}{place}"


@dataclass(frozen=True)
class UNetChoice:
    """Holds the block and timestep that labels chose, and the accuracies of all that were tried.

    >>> UNetChoice("up1", 50, {"up1:50": 81.5, "mid:50": 70.0}).accuracies["up1:50"]
    81.5
    """

    block: str
    timestep: int
    accuracies: Mapping[str, float]
    """`BLOCK:TIMESTEP` → top-1 in percent on the held-out part of train."""


def parse_unet_name(name: str) -> UNetName:
    """Take the name of a U-Net's features apart.

    Raises:
        InputError: it has another form.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise InputError(f"encoder {name}: expected {SYNTAX}")

    timestep = found["timestep"]
    return UNetName(
        path=found["path"],
        block=found["block"],
        timestep=None if timestep is None else int(timestep),
        is_chosen=found["chosen"] is not None,
    )


def load_unet_encoder(name: UNetName, precision: Precision = "no") -> Encoder:
    """Load the features of a diffusion U-Net as an encoder.

    Raises:
        InputError: no such model, block or timestep; or they are still to be chosen.
    """
    from ...generate.unet_features import UNetFeatures

    model, name = _load(name)
    assert name.block is not None
    assert name.timestep is not None
    features = UNetFeatures(model, name.block, name.timestep)
    return Encoder(features, _input(model), precision)


def unet_digest(name: UNetName) -> str:
    """Return the SHA-256 over the digest of a U-Net, the block and the timestep."""
    model, name = _load(name)
    return hashlib.sha256(f"{model.digest} {name.block} {name.timestep}".encode()).hexdigest()


def choose_unet_features(
    name: UNetName, train: ImageSource, precision: Precision = "no", report: Report | None = None
) -> UNetChoice:
    """Choose block and timestep by a linear probe on a part of the training images; test images have no say.

    Every block at every timestep of `TIMESTEPS` is tried with 3 000 images (20 per class at least), of which a fifth is
    held out to be compared on.

    Args:
        report: called with (images done, images), of all timesteps together.

    Raises:
        InputError: no such model, or a class has a single image among them.
    """
    from ...generate import load_diffusion
    from ...generate.unet_features import UNetFeatures, default_block

    # Some of the images, and what is held out of them
    model = load_diffusion(name.path)
    labels_N = train.labels()
    count = max(IMAGES, IMAGES_PER_CLASS * (int(labels_N.max()) + 1))
    chosen_N = np.sort(permutation(len(train), "unet features")[:count])
    labels_N = labels_N[chosen_N]
    held_out_N = hold_out(labels_N, HELD_OUT, "unet features")

    # Every block at every timestep
    timesteps = [t for t in TIMESTEPS if t < model.noise_schedule["num_train_timesteps"]]
    accuracies: dict[str, float] = {}
    for number, timestep in enumerate(timesteps):
        features = UNetFeatures(model, default_block(model), timestep)
        encoder = Encoder(_AllBlocks(features), _input(model), precision)
        batches = []
        for images in ahead(_images(train, chosen_N, encoder.batch)):
            batches.append(encoder(images))
            if report:
                done = number * len(chosen_N) + sum(map(len, batches))
                report(done, len(timesteps) * len(chosen_N))

        # Each block's channels are a part of the features
        widths = _widths(features, model.size)
        parts = torch.cat(batches).split(list(widths.values()), dim=1)
        for block, part_NF in zip(widths, parts, strict=True):
            accuracies[f"{block}:{timestep}"] = _accuracy(part_NF, labels_N, held_out_N)

    best = max(accuracies, key=lambda place: accuracies[place])
    block, _, timestep_text = best.partition(":")
    return UNetChoice(block, int(timestep_text), accuracies)


class _AllBlocks(nn.Module):
    """Gives the features of all blocks side by side."""

    def __init__(self, features: "UNetFeatures"):
        super().__init__()
        self.features = features

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return torch.cat([part for _, part in self.features.of_all_blocks(images_BCHW)], dim=1)


def _widths(features: "UNetFeatures", size: int) -> dict[str, int]:
    """Return the number of features of every block."""
    blank = torch.zeros(1, 3, size, size, device=features.noise.device)
    with torch.inference_mode():
        return {name: part.shape[1] for name, part in features.of_all_blocks(blank)}


def _images(train: ImageSource, places_N: np.ndarray, batch: int) -> Iterator[np.ndarray]:
    for start in range(0, len(places_N), batch):
        places = places_N[start : start + batch].tolist()
        yield np.stack([train[place].image for place in places])


def _accuracy(features_NF: torch.Tensor, labels_N: np.ndarray, held_out_N: np.ndarray) -> float:
    """Return top-1 in percent on the held-out images of a regression fitted to the others."""
    held_out = torch.from_numpy(held_out_N)
    labels = torch.from_numpy(labels_N)
    probe = fit(features_NF[~held_out], labels[~held_out], int(labels.max()) + 1, PROBE_L2)
    predicted = probe.logits(features_NF[held_out]).argmax(dim=1)
    return 100 * float((predicted == labels[held_out]).double().mean())


def _load(name: UNetName) -> "tuple[DiffusionModel, UNetName]":
    """Load a U-Net; return it and its name with block and timestep, the default ones where none are given."""
    if name.is_chosen:
        raise InputError(
            f"{name.text}: labels choose in linear-eval, knn and transfer only, which say what they chose; "
            f"give {UNET}{name.path}@BLOCK:TIMESTEP here"
        )

    from ...generate import load_diffusion
    from ...generate.unet_features import TIMESTEP, default_block

    model = load_diffusion(name.path)
    if name.block is None or name.timestep is None:
        name = name.at(default_block(model), TIMESTEP)
    return model, name


def _input(model: "DiffusionModel") -> dict[str, Any]:
    """Return the images that a U-Net takes, in the form of timm's `pretrained_cfg`: values in [-1, 1]."""
    size = model.size
    return {"input_size": (3, size, size), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
