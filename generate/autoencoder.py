"""A frozen autoencoder, diffusers' AutoencoderKL or VQModel: images to latents, and latents to images.

Shape legend: B images, C channels of a latent, H, W pixels, h, w the sides of a latent.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import diffusers
import torch

from ..core import InputError, exact_precision, local_path
from .config import AUTOENCODER_BATCH
from .pretrained import (
    find_config,
    load_network,
    looks_local,
    network_digest,
    origin_of,
    structure_of,
)

KINDS = ("AutoencoderKL", "VQModel")
"""The classes of diffusers that are autoencoders of images with plain latents."""
BESIDE = ("vae", "vqvae")
"""Where a pipeline keeps its autoencoder."""
PLACES: tuple[str | None, ...] = (None, *BESIDE)
DEFAULT_SCALING = 0.18215
"""What diffusers takes where a configuration has no `scaling_factor`."""


@dataclass(frozen=True)
class AutoencoderFacts:
    """Says where an autoencoder is and what its latents are, by its configuration alone.

    >>> config = AutoencoderFacts("sd-vae", None, "AutoencoderKL", 4, 8, 0.18215, 0.0, {})
    >>> config.latent_size(256)
    32
    """

    path: str
    """A folder or a hub id."""
    subfolder: str | None
    kind: Literal["AutoencoderKL", "VQModel"]
    channels: int
    """Of the latents."""
    factor: int
    """Pixels to a latent's side: an image of 256 pixels has latents of 32 by a factor of 8."""
    scaling: float
    shift: float
    """Latents for the U-Net are `(z - shift)·scaling`, of variance near 1."""
    structure: dict[str, Any]

    @property
    def origin(self) -> str:
        """Return the autoencoder's name for people."""
        return origin_of(self.path)

    @property
    def location(self) -> str:
        """Return where the autoencoder is, as it can be found from any working directory."""
        return str(Path(self.path).resolve()) if Path(self.path).exists() else self.path

    def latent_size(self, size: int) -> int:
        """Return the side of the latents of images of `size` pixels.

        Raises:
            InputError: the factor does not divide it.
        """
        if size % self.factor:
            raise InputError(
                f"anchors of {size} pixels cannot be divided by {self.factor}, as the autoencoder {self.path} does; "
                f"set anchors.size to a multiple of {self.factor}"
            )
        return size // self.factor


class Autoencoder:
    """Turns images into latents and back, in batches of one size, so that no image's bits depend on the others.

    It computes without gradients, and float32 as float32.

    >>> from clsp.generate.example import make_example_autoencoder
    >>> autoencoder = make_example_autoencoder()
    >>> latents_BChw = autoencoder.encode(torch.zeros(3, 3, 8, 8))
    >>> latents_BChw.shape
    torch.Size([3, 4, 4, 4])
    >>> [part_BCHW.shape for part_BCHW in autoencoder.decode(latents_BChw, batch=2)]
    [torch.Size([2, 3, 8, 8]), torch.Size([1, 3, 8, 8])]
    """

    def __init__(self, config: AutoencoderFacts, net: torch.nn.Module):
        self.config = config
        self.net: Any = net
        facts = {"class": config.kind, "autoencoder": config.structure}
        self.digest = network_digest(facts, net)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "Autoencoder":
        """Bring the network to a device and a precision; return itself."""
        torch.nn.Module.to(self.net, device, dtype)
        if torch.device(device).type == "cuda":
            self.net.to(memory_format=torch.channels_last)
        return self

    def encode(self, images_BCHW: torch.Tensor, batch: int = AUTOENCODER_BATCH) -> torch.Tensor:
        """Return the scaled latents `(B, C, h, w)` float32 of images in [-1, 1]: the mean of the posterior.

        A VQModel gives the latents before they are quantized, as its pipeline's U-Net makes them.
        """
        return torch.cat(list(_in_batches(self._encode, images_BCHW, batch)))

    def decode(
        self, latents_BChw: torch.Tensor, batch: int = AUTOENCODER_BATCH
    ) -> Iterator[torch.Tensor]:
        """Yield the images `(b, 3, H, W)` float32 of scaled latents, at most `batch` at a time."""
        yield from _in_batches(self._decode, latents_BChw, batch)

    def _encode(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        encoded = self.net.encode(images_BCHW.to(self.net.dtype))
        is_kl = self.config.kind == "AutoencoderKL"
        latents_BChw = encoded.latent_dist.mode() if is_kl else encoded.latents
        return (latents_BChw.float() - self.config.shift) * self.config.scaling

    def _decode(self, latents_BChw: torch.Tensor) -> torch.Tensor:
        latents_BChw = latents_BChw / self.config.scaling + self.config.shift
        return self.net.decode(latents_BChw.to(self.net.dtype)).sample.float()


def _in_batches(
    compute: Callable[[torch.Tensor], torch.Tensor], rows_B: torch.Tensor, batch: int
) -> Iterator[torch.Tensor]:
    """Yield the results of so many rows at a time; the last batch is filled up with its last row."""
    for start in range(0, len(rows_B), batch):
        part = rows_B[start : start + batch]
        padding = [part[-1:]] * (batch - len(part))
        with torch.inference_mode(), exact_precision():  # not around `yield`: it would hold outside
            result = compute(torch.cat([part, *padding]))

        yield result[: len(part)]


def read_autoencoder(path: str, places: Sequence[str | None] = PLACES) -> AutoencoderFacts:
    """Read what the autoencoder in a folder or on the hub is, without its weights.

    Args:
        places: subfolders in which it may lie, None for the folder itself.

    Raises:
        InputError: there is none, or it is one of another kind.
    """
    path = local_path(path)
    subfolder, config = _find_config(path, places)
    _check_kind(config, path)

    return AutoencoderFacts(
        path=path,
        subfolder=subfolder,
        kind=config["_class_name"],
        channels=_latent_channels(config),
        factor=2 ** (len(config.get("block_out_channels", (64,))) - 1),
        scaling=float(config.get("scaling_factor") or DEFAULT_SCALING),
        shift=float(config.get("shift_factor") or 0.0),
        structure=structure_of(config),
    )


def _find_config(path: str, places: Sequence[str | None]) -> tuple[str | None, dict[str, Any]]:
    """Return the subfolder in which an autoencoder lies, None for the folder itself, and its configuration."""
    # What is meant as a folder is not looked for on the hub
    names = [f"{place}/config.json" if place else "config.json" for place in places]
    is_there = any((Path(path) / name).exists() for name in names)
    if looks_local(path) and not is_there:
        raise InputError(
            f"autoencoder {path}: no {' or '.join(names)} there; give the folder or hub id of diffusers' "
            "AutoencoderKL or VQModel, or train one with: clsp autoencoder train"
        )

    try:
        return find_config(diffusers.AutoencoderKL, path, places)
    except OSError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"autoencoder {path} was found neither as a folder nor on the hub ({reason})"
        ) from error


def _check_kind(config: dict[str, Any], path: str) -> None:
    """Raise InputError for what is no autoencoder of RGB images whose latents are scaled by one factor."""
    kind = config.get("_class_name")
    if kind not in KINDS or not hasattr(diffusers, kind):
        raise InputError(f"autoencoder {path} is of {kind}, expected {' or '.join(KINDS)}")

    pixels = (config.get("in_channels", 3), config.get("out_channels", 3))
    if pixels != (3, 3):
        raise InputError(
            f"autoencoder {path} has {pixels} channels in and out, the anchors are RGB (3, 3)"
        )
    if config.get("latents_mean") or config.get("latents_std"):
        raise InputError(
            f"autoencoder {path} has latents_mean and latents_std, "
            "expected one whose latents are scaled by scaling_factor alone"
        )


def _latent_channels(config: dict[str, Any]) -> int:
    """Return the channels of the latents; those of a VQModel may differ from its encoder's."""
    if config["_class_name"] == "VQModel":
        return config.get("vq_embed_dim") or config.get("latent_channels", 3)
    return config.get("latent_channels", 4)


def load_autoencoder(config: AutoencoderFacts) -> Autoencoder:
    """Load the weights of an autoencoder whose configuration has been read.

    Raises:
        InputError: the weights do not fit the configuration.
    """
    kind = getattr(diffusers, config.kind)
    return Autoencoder(config, load_network(kind, config.path, config.subfolder, "autoencoder"))
