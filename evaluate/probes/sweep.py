"""Linear evaluation, protocol `sweep`: many learning rates and weight decays at once, chosen on a part of train.

Shape legend: N images, F features, B batch, H heads, C classes.
"""

import math
from itertools import product
from typing import Any

import torch
from torch.nn import functional

from ...core import permutation, stream_seed
from ..config import LinearEvalConfig
from ..features.encoder import compute_device
from ..features.extract import Features, hold_out
from .linear import with_flips
from .metrics import accuracies

VALIDATION = 0.1
MOMENTUM = 0.9
Setting = tuple[float, float]  # learning rate, weight decay


def train_heads(
    train: Features, classes: int, settings: list[Setting], config: LinearEvalConfig, seed: int = 0
) -> torch.Tensor:
    """Weights `(F + 1, H, C)` of a linear classifier per setting, all trained in one pass over the features.

    SGD with momentum 0.9 and a cosine to zero; the last row is the bias, which does not decay. Each head gets exactly
    the steps that it would get alone: the softmax's gradient is written out, so one matrix product serves all heads.
    """
    device = compute_device()
    rates, decays = (
        torch.tensor(values, device=device).repeat_interleave(classes)
        for values in zip(*settings, strict=True)
    )
    generator = torch.Generator().manual_seed(stream_seed(seed, "sweep weights"))
    inputs = train.plain_NF.shape[1] + 1
    start = 0.01 * torch.randn(inputs, 1, classes, generator=generator)
    weights = start.repeat(1, len(settings), 1).flatten(1).to(device)  # all heads start alike
    momentum = torch.zeros_like(weights)
    decay = decays.repeat(inputs, 1)
    decay[-1] = 0
    labels = train.labels_N.to(device)
    steps = config.epochs * math.ceil(len(labels) / config.batch_size)
    step = 0

    for epoch in range(config.epochs):
        features = _with_bias(with_flips(train, seed, epoch).to(device))
        order = torch.from_numpy(permutation(len(labels), seed, epoch, "sweep")).to(device)
        for chosen in order.split(config.batch_size):
            x_BF = features[chosen]
            errors_BHC = functional.softmax((x_BF @ weights).view(len(chosen), -1, classes), dim=2)
            errors_BHC[torch.arange(len(chosen), device=device), :, labels[chosen]] -= 1
            gradient = torch.addmm(
                weights * decay, x_BF.T, errors_BHC.flatten(1), alpha=1 / len(chosen)
            )
            momentum.mul_(MOMENTUM).add_(gradient)
            weights.addcmul_(momentum, rates, value=-0.5 * (1 + math.cos(math.pi * step / steps)))
            step += 1

    return weights.view(inputs, len(settings), classes).cpu()


def evaluate_sweep(
    train: Features, test: Features, classes: int, config: LinearEvalConfig, seed: int = 0
) -> dict[str, Any]:
    """Choose on a fixed tenth of train, train on all of it, test once: accuracies in percent and what was chosen.

    Raises:
        InputError: a class has a single training image.
    """
    held_out = torch.from_numpy(hold_out(train.labels_N.numpy(), VALIDATION, "sweep validation"))
    chosen, accuracy = choose(train.at(~held_out), train.at(held_out), classes, config, seed)
    train, mean, std = standardised(train)
    weights = train_heads(train, classes, [chosen], config, seed)[:, 0]
    logits = _with_bias((test.plain_NF - mean) / std) @ weights
    facts = {
        "lr": chosen[0],
        "weight_decay": chosen[1],
        "validation_top1": accuracy,
        "heads": len(config.sweep_lr) * len(config.sweep_weight_decay),
    }

    return {"protocol": "sweep", **accuracies(logits, test.labels_N), "chosen": facts}


def choose(
    fit: Features, validation: Features, classes: int, config: LinearEvalConfig, seed: int
) -> tuple[Setting, float]:
    """The setting with the best top-1 on `validation` after training on `fit`, and that top-1 in percent.

    Of equal ones the smaller learning rate and weight decay win. Heads that diverged never do.
    """
    settings = sorted(product(config.sweep_lr, config.sweep_weight_decay))
    fit, mean, std = standardised(fit)
    weights_FHC = train_heads(fit, classes, settings, config, seed)
    x_NF = _with_bias((validation.plain_NF - mean) / std)
    hits = []

    for head in range(len(settings)):
        logits = x_NF @ weights_FHC[:, head]
        finite = bool(torch.isfinite(logits).all())
        hits.append(int((logits.argmax(dim=1) == validation.labels_N).sum()) if finite else -1)

    best = max(range(len(settings)), key=lambda head: hits[head])
    return settings[best], 100 * hits[best] / len(x_NF)


def standardised(features: Features) -> tuple[Features, torch.Tensor, torch.Tensor]:
    """The features with mean 0 and deviation 1, and what was subtracted and divided by: learning rates then carry over
    from one backbone to another."""
    mean = features.plain_NF.mean(dim=0)
    std = features.plain_NF.std(dim=0)
    std = torch.where(
        std < 1e-6, 1.0, std
    )  # a channel that is constant on train may not be so elsewhere
    flipped = features.flipped_NF
    scaled = None if flipped is None else (flipped - mean) / std
    return Features((features.plain_NF - mean) / std, scaled, features.labels_N), mean, std


def _with_bias(features_NF: torch.Tensor) -> torch.Tensor:
    return torch.cat([features_NF, features_NF.new_ones(len(features_NF), 1)], dim=1)
