"""A GPU trains in TF32 with cuDNN's quickest algorithms, and nothing else does: the settings, on any machine."""

import importlib

import numpy as np
import torch
from clsp.core import exact_precision, training_precision
from clsp.evaluate.features.encoder import Encoder
from clsp.generate import Sampler, SamplerConfig, train_diffusion
from clsp.generate.unconditional import draw_images
from clsp.shards import ShardSet
from clsp.train import PretrainConfig, pretrain
from clsp.train.build import build_optimizer, prepared_method
from conftest import SMALL_METHOD, TINY
from waits import DEVICE, needs_pretended_device

EXACT, FAST = (False, False, False), (True, True, True)
PRETRAINING = importlib.import_module("clsp.train.pretrain")


def settings() -> tuple[bool, bool, bool]:
    cudnn = torch.backends.cudnn
    return torch.backends.cuda.matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark


class Noting(torch.nn.Flatten):
    """Notes the settings at each forward pass; it cannot be traced, so that it stays as it is in an encoder."""

    def __init__(self):
        super().__init__()
        self.found = []

    def forward(self, images_BCHW):
        if images_BCHW.sum() >= 0:
            self.found.append(settings())
        return super().forward(images_BCHW)


def test_settings_nest_and_are_put_back():
    before = settings()
    with training_precision():
        assert settings() == FAST
        with exact_precision():
            assert settings() == EXACT
        assert settings() == FAST
    assert settings() == before


def test_training_is_fast_and_what_it_measures_meanwhile_is_exact(shard_set, tmp_path, monkeypatch):
    steps = []
    probed = Noting()
    step = PRETRAINING.Trainer.step

    def noted_step(self, *given):
        steps.append(settings())
        return step(self, *given)

    def probe(backbone):
        config = {"input_size": (3, 8, 8), "mean": (0, 0, 0), "std": (1, 1, 1)}
        Encoder(probed, config)(np.zeros((2, 8, 8, 3), np.uint8))
        return {}

    monkeypatch.setattr(PRETRAINING.Trainer, "step", noted_step)
    config = PretrainConfig(**SMALL_METHOD, batch_size=16, epochs=1, workers=0, knn_epochs=1)
    before = settings()
    pretrain(ShardSet(shard_set), config, tmp_path / "run", probe=probe)
    assert set(steps) == {FAST} and probed.found[-1] == EXACT and settings() == before


def test_diffusion_trains_fast_and_samples_exactly(model, digits, tmp_path, monkeypatch):
    training = importlib.import_module("clsp.generate.train_diffusion")
    steps, samples = [], []
    step = training._Training.step
    monkeypatch.setattr(
        training._Training, "step", lambda *given: (steps.append(settings()), step(*given))
    )
    config = TINY.model_copy(update={"steps": 2, "batch_size": 16})
    train_diffusion(digits, config, tmp_path / "model")
    assert set(steps) == {FAST}

    hook = model.unet.conv_in.register_forward_pre_hook(lambda *_: samples.append(settings()))
    sampler = Sampler(model, SamplerConfig(steps=2, micro_batch=2))
    with training_precision():
        sampler(np.zeros((2, 8, 8, 3), np.uint8), ["a", "b"], candidates=1)
        list(draw_images(model.unet.to("cpu"), model.noise_schedule, 8, count=2, steps=2))
    hook.remove()
    assert set(samples) == {EXACT}


@needs_pretended_device
def test_optimizers_are_fused_on_a_gpu():
    for name, fused in (("sgd", True), ("adamw", True), ("lars", None)):
        config = PretrainConfig(**SMALL_METHOD, optimizer=name)
        on_gpu = build_optimizer(prepared_method(config, DEVICE), config)
        on_cpu = build_optimizer(prepared_method(config, torch.device("cpu")), config)
        assert {group.get("fused") for group in on_gpu.param_groups} == {fused}
        assert not any(group.get("fused") for group in on_cpu.param_groups)
