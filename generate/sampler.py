"""Synthetic positives of a micro-batch of anchors: the method, top to bottom (CLSP, section 3.2 and algorithm 1).

A latent model works on the anchors' latents, and its candidates are decoded after the last step.

Shape legend: B anchors of a micro-batch, K candidates, C channels, H, W pixels (of a latent: h, w).
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from ..core import WorkError, exact_precision, to_device
from .autoencoder import Autoencoder
from .condition import check_guidance, check_told_features
from .config import SamplerConfig
from .interpolation import Encoded, decode, encode, interpolate, interpolate_on_arc
from .keyed_noise import Stream, keyed_normal, noise_keys
from .model import DiffusionModel, check_clip
from .pixels import to_model_range, to_uint8
from .schedulers import (
    PIXEL_BOUNDS,
    as_epsilon,
    check_window,
    clip_predicted_x0,
    make_scheduler,
    mixing_timesteps,
    noise_to,
    unchecked_solving,
)
from .told_features import ToldFeatures, class_rows, without_class_embedding

Told = torch.Tensor | None
"""What the U-Net is told of a micro-batch: classes `(B,)` int64, or features `(B, E)` float32; None: nothing."""


MIXINGS = {"linear": interpolate, "slerp": interpolate_on_arc}


class _Batch(NamedTuple):
    """Holds what stays the same over all steps of a micro-batch."""

    anchors_BCHW: torch.Tensor
    keys_B2: torch.Tensor
    passes: list[Told]
    """What each pass of the U-Net is told."""


class Sampler:
    """Makes candidates `first` … `first + candidates - 1` of anchors with a diffusion model.

    Every U-Net call holds exactly `config.micro_batch` anchors at one candidate index (short batches are padded), so
    an image depends neither on K nor on which process makes it.

    >>> from clsp.generate.example import make_example_model
    >>> from clsp.shards import AnchorsConfig, ImageSource
    >>> anchors = list(ImageSource(AnchorsConfig(path="digits", limit=2)))
    >>> images_BHWC = np.stack([anchor.image for anchor in anchors])
    >>> keys = [anchor.key for anchor in anchors]
    >>> sampler = Sampler(make_example_model(size=8), SamplerConfig(steps=2, micro_batch=2))
    >>> candidates_BKHWC = sampler(images_BHWC, keys, candidates=3)
    >>> candidates_BKHWC.shape
    (2, 3, 8, 8, 3)
    >>> last_BKHWC = sampler(images_BHWC, keys, candidates=1, first=2)
    >>> np.array_equal(last_BKHWC[:, 0], candidates_BKHWC[:, 2])
    True
    """

    def __init__(
        self, model: DiffusionModel, config: SamplerConfig, device: torch.device | str = "cpu"
    ):
        self.model = model
        self.config = config.decided()
        self.device = torch.device(device)
        self.dtype = getattr(torch, self.config.dtype)
        self.unet: Any = model.unet

        # Features that it is told stay in float32, and in the model as they are
        check_told_features(model.condition, self.config, model.origin)
        self.told: ToldFeatures | None = None
        if model.condition is not None and model.condition.kind == "features":
            rows_NE = class_rows(self.unet).to(self.device)
            directions, neighbours = self.config.told_directions, self.config.told_neighbours
            with exact_precision(), self.pinned_threads():
                self.told = ToldFeatures(rows_NE, directions, neighbours)
            self.unet = without_class_embedding(self.unet)

        torch.nn.Module.to(
            self.unet, self.device, self.dtype
        )  # diffusers' own `to` warns about a cast that is meant

        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)

        compiled: Any = torch.compile if config.compile else lambda half: half
        self.encode: Callable[..., Encoded] = partial(compiled(encode), self.unet)
        self.decode: Callable[[Encoded], torch.Tensor] = partial(compiled(decode), self.unet)
        check_guidance(model.condition, self.config.guidance, model.origin)
        check_window(self.config, model.noise_schedule)
        check_clip(model, self.config.clip)

        # Latents
        self.bounds = PIXEL_BOUNDS
        self.decode_batch = min(self.config.decode_batch, self.config.micro_batch)
        if model.latent:
            model.latent.autoencoder.to(self.device, self.dtype)
            if self.config.clip:
                self.bounds = model.latent.bounds(self.device)

    def __call__(
        self,
        anchors_BHWC: np.ndarray,
        keys: Sequence[str],
        candidates: int,
        first: int = 0,
        classes: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Make candidates `(B, K, H, W, C)` uint8 of anchors `(B, H, W, C)` uint8; B is at most the micro-batch.

        Args:
            classes: of the anchors, for a model with classes: `model.condition.classes_of(anchors)`.

        Raises:
            WorkError: the model or its autoencoder gave values that are not finite, naming the anchors.
        """
        if (classes is None) != (self.model.condition is None):
            raise ValueError("classes go with a model that has a condition, and only with one")

        # Fill the micro-batch up with the last anchor
        padding = self.config.micro_batch - len(keys)
        padded_keys = [*keys, *[keys[-1]] * padding]
        classes_B = None
        if classes is not None:
            padded_classes = [*classes, *[classes[-1]] * padding]
            classes_B = to_device(torch.tensor(padded_classes, dtype=torch.int64), self.device)

        with torch.inference_mode(), exact_precision(), self.pinned_threads():
            # Sample
            x0_BCHW = self._model_space(anchors_BHWC, keys)
            padded_BCHW = torch.cat([x0_BCHW, *[x0_BCHW[-1:]] * padding])
            x0_KBCHW = self._sample(padded_BCHW, padded_keys, candidates, first, classes_B)
            x0_KBCHW = x0_KBCHW[:, : len(keys)]

            # To pixels
            if self.model.latent:
                return self._decoded(x0_KBCHW, keys, self.model.latent.autoencoder)

        x0_BKCHW = x0_KBCHW.transpose(0, 1).cpu()
        _check_finite(x0_BKCHW, keys, "the diffusion model gave values")
        return to_uint8(x0_BKCHW)

    def _model_space(self, anchors_BHWC: np.ndarray, keys: Sequence[str]) -> torch.Tensor:
        """Return anchors as the model has them, `(B, C, H, W)` float32: in [-1, 1], or their latents."""
        images_BCHW = to_device(to_model_range(anchors_BHWC), self.device)
        if self.model.latent is None:
            return images_BCHW

        autoencoder = self.model.latent.autoencoder
        latents_BChw = autoencoder.encode(images_BCHW, self.decode_batch)
        _check_finite(latents_BChw.cpu(), keys, "the autoencoder gave latents")
        return latents_BChw

    def _decoded(
        self, x0_KBChw: torch.Tensor, keys: Sequence[str], autoencoder: Autoencoder
    ) -> np.ndarray:
        """Return the images `(B, K, H, W, C)` uint8 of latents, decoded a few at a time.

        A batch of the autoencoder holds anchors at one candidate index, as one of the U-Net does: an image's place in
        it, and so its last bits, depend on the anchor's place in the micro-batch alone.
        """
        _check_finite(x0_KBChw.transpose(0, 1).cpu(), keys, "the diffusion model gave latents")

        candidates_KBHWC = []
        for x0_BChw in x0_KBChw:
            parts = []
            for images_BCHW in autoencoder.decode(x0_BChw, self.decode_batch):
                start = sum(map(len, parts))
                part_keys = keys[start : start + len(images_BCHW)]
                on_host = images_BCHW.cpu()
                _check_finite(on_host, part_keys, "the autoencoder gave pixels")
                parts.append(to_uint8(on_host))

            candidates_KBHWC.append(np.concatenate(parts))

        return np.stack(candidates_KBHWC, axis=1)

    def _sample(
        self,
        anchors_BCHW: torch.Tensor,
        keys: Sequence[str],
        candidates: int,
        first: int,
        classes_B: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return x0 `(K, B, C, H, W)` in float32 (CLSP, algorithm 1)."""
        config = self.config
        shape = anchors_BCHW.shape[1:]
        keys_B2 = noise_keys(config.seed, keys, self.device)
        batch = _Batch(anchors_BCHW, keys_B2, self.passes(classes_B))
        schedule = self.model.noise_schedule
        schedulers = [make_scheduler(config, schedule, self.device) for _ in range(candidates)]

        # x_T ~ N(0, I)
        x_K = [
            keyed_normal(keys_B2, shape, 0, first + k, Stream.INITIAL) for k in range(candidates)
        ]

        mixed_at = set(mixing_timesteps(config, self.model.noise_schedule))
        for timestep in schedulers[0].timesteps.tolist():
            alpha_bar = float(schedulers[0].alphas_cumprod[timestep])

            # h_anchor, of the anchor noised to t: one for all candidates, or one each
            is_mixed = timestep in mixed_at
            shared = None
            if is_mixed and config.share_anchor:
                shared = self._encode_anchors(batch, timestep, alpha_bar, Stream.SHARED_ANCHOR, 0)

            for k, scheduler in enumerate(schedulers):
                anchor_bottlenecks = shared
                if is_mixed and not config.share_anchor:
                    anchor_bottlenecks = self._encode_anchors(
                        batch, timestep, alpha_bar, Stream.ANCHOR, first + k
                    )

                # ε of h = w·h_sample + (1-w)·h_anchor
                predicted = self._predict(batch, x_K[k], timestep, anchor_bottlenecks)
                epsilon = as_epsilon(predicted, x_K[k], alpha_bar, self._prediction)

                # x_t to x_(t-1)
                x = x_K[k]
                if config.clip:
                    x = clip_predicted_x0(x, epsilon, alpha_bar, self.bounds)
                x_K[k] = self._step(scheduler, epsilon, timestep, x, keys_B2, first + k)

        return torch.stack(x_K)

    def _encode_anchors(
        self, batch: "_Batch", timestep: int, alpha_bar: float, stream: Stream, candidate: int
    ) -> list[torch.Tensor]:
        """Return h_anchor of every pass, of the anchors noised to a timestep."""
        shape = batch.anchors_BCHW.shape[1:]
        noise = keyed_normal(batch.keys_B2, shape, timestep, candidate, stream)
        x_t = noise_to(batch.anchors_BCHW, noise, alpha_bar).to(self.dtype)
        return [self.encode(x_t, timestep, told_B).bottleneck for told_B in batch.passes]

    def _predict(
        self,
        batch: "_Batch",
        x_BCHW: torch.Tensor,
        timestep: int,
        anchor_bottlenecks: list[torch.Tensor] | None,
    ) -> torch.Tensor:
        """Return what the U-Net predicts of samples, with the anchors' features mixed in where there are any."""
        predictions = []
        for number, told_B in enumerate(batch.passes):
            encoded = self.encode(x_BCHW.to(self.dtype), timestep, told_B)
            if anchor_bottlenecks is not None:
                mix = MIXINGS[self.config.mixing]
                encoded = mix(encoded, anchor_bottlenecks[number], self.config.weight)

            predictions.append(self.decode(encoded).float())

        if len(predictions) == 1:
            return predictions[0]

        # Guidance: ε_none + s·(ε_class - ε_none) (Ho & Salimans, 2022)
        of_class, of_none = predictions
        return of_none + self.config.guidance * (of_class - of_none)

    @property
    def _prediction(self) -> str:
        return self.model.noise_schedule.get("prediction_type", "epsilon")

    def passes(self, classes_B: torch.Tensor | None) -> list[Told]:
        """Return what each pass of the U-Net is told: of the images, by their classes, and «no class» to be guided."""
        if classes_B is None:
            return [None]

        # Of the images
        own_B = self.told(classes_B) if self.told else classes_B
        if self.config.guidance == 1:
            return [own_B]

        # «No class»
        if self.told:
            return [own_B, self.told.none_E.expand_as(own_B)]
        assert self.model.condition is not None
        assert self.model.condition.null is not None
        return [own_B, torch.full_like(classes_B, self.model.condition.null)]

    def pinned_threads(self) -> contextlib.AbstractContextManager[None]:
        """Compute on `config.threads` threads: on a CPU their number decides the last bits of sums."""
        if self.device.type != "cpu":
            return contextlib.nullcontext()
        return threads(self.config.threads)

    def _step(
        self,
        scheduler,
        epsilon,
        timestep: int,
        x: torch.Tensor,
        keys_B2: torch.Tensor,
        candidate: int,
    ):
        if self.config.scheduler != "ddim":
            with unchecked_solving(self.device):
                return scheduler.step(epsilon, timestep, x).prev_sample

        eta = self.config.eta
        noise = None
        if eta > 0:
            noise = keyed_normal(keys_B2, x.shape[1:], timestep, candidate, Stream.STEP)
        return scheduler.step(epsilon, timestep, x, eta=eta, variance_noise=noise).prev_sample


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute on so many threads of the CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_finite(values_BX: torch.Tensor, keys: Sequence[str], what: str) -> None:
    """Raise WorkError, naming the anchors, where values of a batch are not finite."""
    is_finite_B = values_BX.flatten(1).isfinite().all(dim=1).tolist()
    broken = [key for key, is_finite in zip(keys, is_finite_B, strict=True) if not is_finite]
    if broken:
        raise WorkError(f"{what} that are not finite for the anchors {', '.join(broken)}")
