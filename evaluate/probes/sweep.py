"""Evaluate a linear classifier, protocol `sweep`: many learning rates and decays at once, chosen on a part of train.

Shape legend: N images, F features, B batch, H heads, C classes.
"""

import math
from itertools import product

import torch
from torch.nn import functional

from ...core import permutation, stream_seed
from ..config import LinearEvalConfig
from ..features.encoder import compute_device
from ..features.extract import Features, hold_out
from .few_labels import asked_for
from .linear import with_flips
from .metrics import accuracies
from .registry import Figures
from .standardise import standardised

VALIDATION = 0.1
MOMENTUM = 0.9
Setting = tuple[float, float]  # learning rate, weight decay


def train_heads(
    train: Features, classes: int, settings: list[Setting], config: LinearEvalConfig, seed: int = 0
) -> torch.Tensor:
    """Train a linear classifier per setting, all in one pass over the features; return weights `(F + 1, H, C)`.

    SGD with momentum 0.9 and a cosine to zero; the last row is the bias, which does not decay. Each head gets exactly
    the steps that it would get alone: the softmax's gradient is written out, so one matrix product serves all heads.
    """
    device = compute_device()
    labels = train.labels_N.to(device)
    inputs = train.plain_NF.shape[1] + 1

    # A column per head and class: its learning rate, and its weight decay but for the bias
    rates = _per_column([rate for rate, _ in settings], classes, device)
    decay = _per_column([decay for _, decay in settings], classes, device).repeat(inputs, 1)
    decay[-1] = 0

    # All heads start alike
    generator = torch.Generator().manual_seed(stream_seed(seed, "sweep weights"))
    start = 0.01 * torch.randn(inputs, 1, classes, generator=generator)
    weights = start.repeat(1, len(settings), 1).flatten(1).to(device)
    momentum = torch.zeros_like(weights)
    steps = config.epochs * math.ceil(len(labels) / config.batch_size)
    step = 0

    for epoch in range(config.epochs):
        features = _with_bias(with_flips(train, seed, epoch).to(device))
        order = torch.from_numpy(permutation(len(labels), seed, epoch, "sweep")).to(device)
        for chosen in order.split(config.batch_size):
            # Gradient of the cross-entropy: softmax less one at the label
            x_BF = features[chosen]
            errors_BHC = functional.softmax((x_BF @ weights).view(len(chosen), -1, classes), dim=2)
            errors_BHC[torch.arange(len(chosen), device=device), :, labels[chosen]] -= 1
            gradient = torch.addmm(
                weights * decay, x_BF.T, errors_BHC.flatten(1), alpha=1 / len(chosen)
            )

            # Step of SGD with momentum, the learning rate on a cosine to zero
            momentum.mul_(MOMENTUM).add_(gradient)
            weights.addcmul_(momentum, rates, value=-0.5 * (1 + math.cos(math.pi * step / steps)))
            step += 1

    return weights.view(inputs, len(settings), classes).cpu()


def _per_column(values: list[float], classes: int, device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).repeat_interleave(classes)


def evaluate_sweep(
    train: Features, test: Features, classes: int, config: LinearEvalConfig, seed: int = 0
) -> Figures:
    """Choose on a fixed tenth of train, train on all of it, test once: accuracies in percent and what was chosen.

    Raises:
        InputError: a class has a single training image.
    """
    # Choose a setting
    held_out = torch.from_numpy(hold_out(train.labels_N.numpy(), VALIDATION, "sweep validation"))
    chosen, accuracy = choose(train.at(~held_out), train.at(held_out), classes, config, seed)

    # Train with it, and test
    scaled = standardised(train)
    weights_FC = train_heads(scaled.features, classes, [chosen], config, seed)[:, 0]
    logits = _with_bias(scaled.apply(test.plain_NF)) @ weights_FC
    facts = {
        "lr": chosen[0],
        "weight_decay": chosen[1],
        "validation_top1": accuracy,
        "heads": len(config.sweep_lr) * len(config.sweep_weight_decay),
    }

    return {"protocol": "sweep", **accuracies(logits, test.labels_N), "chosen": facts}


def run(
    train: Features, test: Features, classes: int, config: LinearEvalConfig, seed: int
) -> Figures:
    """Evaluate with all labels and, where the recipe asks for them, with few."""
    result = evaluate_sweep(train, test, classes, config, seed)
    return result | asked_for(train, test, classes, config)


def choose(
    fit: Features, validation: Features, classes: int, config: LinearEvalConfig, seed: int
) -> tuple[Setting, float]:
    """Return the setting with the best top-1 on `validation` after training on `fit`, and that top-1 in percent.

    Of equal ones the smaller learning rate and weight decay win. Heads that diverged never do.
    """
    settings = sorted(product(config.sweep_lr, config.sweep_weight_decay))
    scaled = standardised(fit)
    weights_FHC = train_heads(scaled.features, classes, settings, config, seed)
    x_NF = _with_bias(scaled.apply(validation.plain_NF))
    best = 0
    best_hits = -1

    for head in range(len(settings)):
        logits = x_NF @ weights_FHC[:, head]
        if not bool(torch.isfinite(logits).all()):
            continue
        hits = int((logits.argmax(dim=1) == validation.labels_N).sum())
        if hits > best_hits:
            best = head
            best_hits = hits

    return settings[best], 100 * best_hits / len(x_NF)


def _with_bias(features_NF: torch.Tensor) -> torch.Tensor:
    return torch.cat([features_NF, features_NF.new_ones(len(features_NF), 1)], dim=1)
