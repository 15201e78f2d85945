"""Evaluate a linear classifier, protocol `clsp`: the paper's exact one, over features extracted once."""

import torch
from torch import nn

from ...core import permutation, stream_seed
from ..config import LinearEvalConfig
from ..features.extract import Features
from .few_labels import asked_for
from .metrics import accuracies
from .registry import Figures


def train_linear(
    train: Features, classes: int, config: LinearEvalConfig, seed: int = 0
) -> nn.Linear:
    """Train a linear classifier on frozen features: SGD without momentum or weight decay, ×0.1 at the milestones.

    Flips are drawn per image and epoch between the cached features of an image and of its mirror image, which equals
    flipping before a frozen backbone in eval mode. The order and the flips depend on (seed, epoch) alone.
    """
    torch.manual_seed(stream_seed(seed, "linear weights"))
    head = nn.Linear(train.plain_NF.shape[1], classes)
    optimizer = torch.optim.SGD(head.parameters(), lr=config.lr)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(config.milestones), gamma=0.1)

    for epoch in range(config.epochs):
        features = with_flips(train, seed, epoch)
        order = torch.from_numpy(permutation(len(features), seed, epoch, "linear"))
        for chosen in order.split(config.batch_size):
            loss = nn.functional.cross_entropy(head(features[chosen]), train.labels_N[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()

    return head


def with_flips(features: Features, seed: int, epoch: int) -> torch.Tensor:
    """Return the features `(N, F)` of an epoch: per image those of the image or of its mirror image."""
    if features.flipped_NF is None:
        return features.plain_NF
    generator = torch.Generator().manual_seed(stream_seed(seed, epoch, "flips"))
    flip = torch.rand(len(features.plain_NF), 1, generator=generator) < 0.5
    return torch.where(flip, features.flipped_NF, features.plain_NF)


def evaluate_linear(
    train: Features, test: Features, classes: int, config: LinearEvalConfig, seed: int = 0
) -> Figures:
    """Train the classifier and test it once, after the last epoch: top-1, top-5 and mean per class, in percent."""
    head = train_linear(train, classes, config, seed)
    with torch.inference_mode():
        logits = head(test.plain_NF)
    return {"protocol": "clsp", **accuracies(logits, test.labels_N)}


def run(
    train: Features, test: Features, classes: int, config: LinearEvalConfig, seed: int
) -> Figures:
    """Evaluate with all labels and, where the recipe asks for them, with few."""
    result = evaluate_linear(train, test, classes, config, seed)
    return result | asked_for(train, test, classes, config)
