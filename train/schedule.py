"""Learning rate and λ as pure functions of the step: nothing to save, nothing that restarts on resume."""

import math

from .config import PretrainConfig


def learning_rate(step: int, steps_per_epoch: int, config: PretrainConfig) -> float:
    """Return the rate of a step: linear warm-up from `warmup_lr` to `lr`, then as `schedule` says, to 0 at the end."""
    warmup = config.warmup_epochs * steps_per_epoch
    total = config.epochs * steps_per_epoch
    if step < warmup:
        return config.warmup_lr + (config.lr - config.warmup_lr) * step / warmup

    # Warm-up, stable, decay: nothing before the decay knows how long the run is
    if config.stable_epochs is not None:
        decay_start = config.stable_epochs * steps_per_epoch
        share = max(0.0, (step - decay_start) / (total - decay_start))
        return config.lr * (1 - math.sqrt(share))

    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def synthetic_weight(step: int, steps_per_epoch: int, config: PretrainConfig) -> float:
    """Return λ at a step: a linear rise over `synthetic.warmup` epochs, then constant."""
    warmup = config.synthetic.warmup * steps_per_epoch
    return config.synthetic.weight * min(1.0, step / warmup if warmup else 1.0)
