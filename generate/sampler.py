"""Synthetic positives of a micro-batch of anchors: the method, top to bottom (CLSP, section 3.2 and algorithm 1).

Shape legend: B anchors of a micro-batch, K candidates, C channels, H, W pixels.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from ..core import WorkError
from .config import SamplerConfig
from .interpolation import Encoded, decode, encode, interpolate
from .keyed_noise import Stream, keyed_normal, noise_keys
from .model import DiffusionModel
from .pixels import to_model_range, to_uint8
from .schedulers import clip_predicted_x0, make_scheduler, noise_to


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
        torch.nn.Module.to(
            self.unet, self.device, self.dtype
        )  # diffusers' own `to` warns about a cast that is meant

        if self.device.type == "cuda":
            self.unet.to(memory_format=torch.channels_last)

        compiled: Any = torch.compile if config.compile else lambda half: half
        self.encode: Callable[[torch.Tensor, int], Encoded] = partial(compiled(encode), self.unet)
        self.decode: Callable[[Encoded], torch.Tensor] = partial(compiled(decode), self.unet)

    def __call__(
        self, anchors_BHWC: np.ndarray, keys: Sequence[str], candidates: int, first: int = 0
    ) -> np.ndarray:
        """Make candidates `(B, K, H, W, C)` uint8 of anchors `(B, H, W, C)` uint8; B is at most the micro-batch.

        Raises:
            WorkError: the model gave values that are not finite, naming the anchors.
        """
        # Fill the micro-batch up with the last anchor
        padding = self.config.micro_batch - len(keys)
        padded_keys = [*keys, *[keys[-1]] * padding]
        padded = np.concatenate([anchors_BHWC, np.repeat(anchors_BHWC[-1:], padding, axis=0)])

        # Sample
        with torch.inference_mode(), self.pinned_threads():
            x0_KBCHW = self._sample(
                to_model_range(padded).to(self.device), padded_keys, candidates, first
            )

        # Check and round
        x0_BKCHW = x0_KBCHW.transpose(0, 1)[: len(keys)].cpu()
        finite = x0_BKCHW.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            broken = [key for key, good in zip(keys, finite.tolist(), strict=True) if not good]
            raise WorkError(
                f"the diffusion model gave values that are not finite for the anchors {', '.join(broken)}"
            )

        return to_uint8(x0_BKCHW)

    def _sample(
        self, anchors_BCHW: torch.Tensor, keys: Sequence[str], candidates: int, first: int
    ) -> torch.Tensor:
        """Return x0 `(K, B, C, H, W)` in float32 (CLSP, algorithm 1)."""
        config = self.config
        shape = anchors_BCHW.shape[1:]
        keys_B2 = noise_keys(config.seed, keys, self.device)
        schedulers = [make_scheduler(config, self.model.noise_schedule) for _ in range(candidates)]

        # x_T ~ N(0, I)
        x_K = [
            keyed_normal(keys_B2, shape, 0, first + k, Stream.INITIAL) for k in range(candidates)
        ]

        for timestep in schedulers[0].timesteps.tolist():
            alpha_bar = float(schedulers[0].alphas_cumprod[timestep])

            # h_anchor, of the anchor noised to t: one for all candidates, or one each
            shared = None
            if config.share_anchor:
                noise = keyed_normal(keys_B2, shape, timestep, 0, Stream.SHARED_ANCHOR)
                shared = self._bottleneck(noise_to(anchors_BCHW, noise, alpha_bar), timestep)

            for k, scheduler in enumerate(schedulers):
                anchor_bottleneck = shared
                if anchor_bottleneck is None:
                    noise = keyed_normal(keys_B2, shape, timestep, first + k, Stream.ANCHOR)
                    anchor_bottleneck = self._bottleneck(
                        noise_to(anchors_BCHW, noise, alpha_bar), timestep
                    )

                # ε of h = w·h_sample + (1-w)·h_anchor
                sample = self.encode(x_K[k].to(self.dtype), timestep)
                mixed = interpolate(sample, anchor_bottleneck, config.weight)
                epsilon = self.decode(mixed).float()

                # x_t to x_(t-1)
                x = clip_predicted_x0(x_K[k], epsilon, alpha_bar) if config.clip else x_K[k]
                x_K[k] = self._step(scheduler, epsilon, timestep, x, keys_B2, first + k)

        return torch.stack(x_K)

    @contextlib.contextmanager
    def pinned_threads(self) -> Iterator[None]:
        """Compute on `config.threads` threads: on a CPU their number decides the last bits of sums."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.config.threads if self.device.type == "cpu" else before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _bottleneck(self, x_BCHW: torch.Tensor, timestep: int) -> torch.Tensor:
        return self.encode(x_BCHW.to(self.dtype), timestep).bottleneck

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
            return scheduler.step(epsilon, timestep, x).prev_sample

        eta = self.config.eta
        noise = None
        if eta > 0:
            noise = keyed_normal(keys_B2, x.shape[1:], timestep, candidate, Stream.STEP)
        return scheduler.step(epsilon, timestep, x, eta=eta, variance_noise=noise).prev_sample
