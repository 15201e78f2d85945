"""Diffusion models that train in a second, with and without what an encoder says of their anchors."""

import os
from pathlib import Path

import numpy as np
import pytest
from clsp.generate import (
    ClusterEncoder,
    DiffusionConfig,
    DiffusionModel,
    Sampler,
    SamplerConfig,
    make_plan,
    make_shards,
    train_diffusion,
)
from clsp.generate.train_diffusion import _Training
from clsp.shards import AnchorsConfig, ImageSource, ShardsConfig, write_plan
from places import contents

SMALL = DiffusionConfig(
    channels=(32, 32),
    attention=(False, False),
    blocks=1,
    steps=4,
    batch_size=8,
    warmup_steps=2,
    checkpoint_steps=2,
)
CLUSTERED = DiffusionConfig.model_validate(
    {**SMALL.model_dump(), "condition": "clusters", "clusters": 3, "cluster_encoder": "pixels"}
)
TOLD = CLUSTERED.model_copy(update={"condition": "features"})
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


def pixels(images: ImageSource) -> np.ndarray:
    """Return the pixels of images as their features, `(N, 3·H·W)`."""
    return np.stack([image.image.reshape(-1) for image in images]).astype(np.float32)


PIXELS = ClusterEncoder("pixels", "11", pixels)
UNREADABLE = ClusterEncoder("pixels", "11", lambda _: np.empty(0))
"""The same encoder, for trainings that have no need of it any more."""


def crash_before_step(monkeypatch: pytest.MonkeyPatch, crash: int) -> None:
    """Let every diffusion training raise a KeyError in the place of a step."""
    original = _Training.step

    def step_and_crash(self, batch, step):
        if step == crash:
            raise KeyError
        return original(self, batch, step)

    monkeypatch.setattr(_Training, "step", step_and_crash)


def tars_by_processes(
    model: DiffusionModel, anchors: ImageSource, config: SamplerConfig, out: Path
) -> list[dict[str, bytes]]:
    """Make the same set by one, two and three processes, `out`/1 …; return the tars of each."""
    plan = make_plan(anchors, model, config, ShardsConfig(candidates=2, records=8))
    found = []
    for processes in (1, 2, 3):
        root = out / f"{processes}"
        write_plan(root, plan)
        for rank in range(processes):
            sampler = Sampler(model, config)
            make_shards(root, plan, anchors, sampler, rank=rank, world_size=processes)
        files = contents(root)
        found.append({name: files[name] for name in files if name.endswith(".tar")})

    return found


def train_and_keep_rows(out: Path) -> None:
    """Train as one of several processes, of which the first alone can use the encoder.

    Each keeps what its U-Net is told: `out`/rows-RANK.npy.
    """
    rank = int(os.environ["RANK"])
    original = _Training.step

    def step_with_rows(self, batch, step):
        np.save(out / f"rows-{rank}.npy", self.net.class_embedding.weight.detach().numpy())
        return original(self, batch, step)

    _Training.step = step_with_rows
    digits = ImageSource(AnchorsConfig(limit=40))
    train_diffusion(digits, TOLD, out, encoder=UNREADABLE if rank else PIXELS)
