"""Build what a run consists of: its order of batches, loader, method and optimizer."""

from typing import Any

import timm.optim
import torch
from torch import nn

from ..core import InputError
from ..shards import BatchOrder, PairDataset, PairLoader, ShardSet
from ..shards.reading.candidates import choice_by_scores
from ..shards.reading.choose_pixels import check_pixels
from .backbone import as_channels_last
from .config import PretrainConfig
from .label_permission import check_permission
from .methods import Method, build_method, method_class

LARS_TRUST = 0.02
"""η of LARS, with its rate clipped at the learning rate, as in solo-learn."""


def batch_order(
    shards: ShardSet, config: PretrainConfig, rank: int = 0, world_size: int = 1
) -> BatchOrder:
    """Return the run's order of batches.

    Raises:
        InputError: the batch is larger than the set or not divisible by the number of processes.
    """
    if config.batch_size > len(shards):
        raise InputError(
            f"pretrain.batch_size is {config.batch_size}, the set {shards.root} has {len(shards)} anchors"
        )

    parts = world_size * config.accumulation
    if config.batch_size % parts:
        found = f"the {world_size} processes times accumulation = {config.accumulation}"
        raise InputError(f"pretrain.batch_size is {config.batch_size}, not divisible by {found}")

    return BatchOrder(
        shards.shard_sizes, shards.plan.digest, config.seed, config.batch_size, rank, world_size
    )


def pair_loader(shards: ShardSet, config: PretrainConfig, order: BatchOrder) -> PairLoader:
    """Return the run's batches.

    Raises:
        InputError: the set lacks the candidates, labels or scores that the method and its settings need, or labels
            would choose the candidates without permission; or a cache that is asked for does not fit.
    """
    check_permission(config)
    check_pixels(shards, config.cache)

    # What the method needs of the set
    needs_candidates = config.extra in ("shards", "inflation")
    synthetic = config.synthetic
    if needs_candidates and shards.candidates == 0:
        raise InputError(
            f"{shards.root} has no candidates; make some, or set pretrain.synthetic.source=none"
        )
    if method_class(config).needs_labels and (shards.labels() < 0).any():
        raise InputError(
            f"pretrain.method = {config.method} needs labels, and {shards.root} has anchors without one"
        )

    _check_momentum(config)

    # Which candidate is drawn
    choice = None
    if needs_candidates and synthetic.scores:
        choice = choice_by_scores(
            shards,
            config.seed,
            synthetic.scores,
            synthetic.measure,
            minimum=synthetic.minimum,
            weighted=synthetic.weighted,
            keep=synthetic.keep,
            weight_map=synthetic.weight_map,
        )

    count = synthetic.candidates if config.third_view == "shards" else 1
    dataset = PairDataset(shards, config.seed, needs_candidates, choice, count)
    return PairLoader(
        dataset, order, order.batches_per_epoch * config.epochs, workers=config.workers
    )


def _check_momentum(config: PretrainConfig) -> None:
    """Raise InputError where the momentum depends on the length of a run that may be given more epochs."""
    changes = config.momentum_start != config.momentum_end
    if config.schedule == "wsd" and changes and method_class(config).has_momentum:
        raise InputError(
            f"pretrain.schedule = wsd, and the momentum of {config.method} rises from {config.momentum_start} to "
            f"{config.momentum_end} over the whole run, whose length is open then; set momentum_start = momentum_end"
        )


def prepared_method(config: PretrainConfig, device: torch.device) -> Method:
    """Return the recipe's method on its device, channels-last, with synchronised norms and compiled if asked for."""
    method: Any = as_channels_last(build_method(config).to(device))
    if config.sync_batch_norm:
        if device.type == "cpu":
            raise InputError(
                "pretrain.sync_batch_norm works on GPUs only; set it to false, or batch_norm to joint"
            )
        method = nn.SyncBatchNorm.convert_sync_batchnorm(method)

    if config.compile:
        method.backbone.compile()

    return method


def build_optimizer(method: Method, config: PretrainConfig) -> torch.optim.Optimizer:
    """Return timm's optimizer of that name; LARS leaves 1-D parameters without decay and without adaptation."""
    kwargs: dict[str, Any] = {} if config.optimizer == "adamw" else {"momentum": config.momentum}
    if config.optimizer == "sgd":
        kwargs["nesterov"] = False
    elif config.optimizer == "lars":
        kwargs |= {"trust_coeff": LARS_TRUST, "trust_clip": True}

    # One kernel for all parameters, where there is a GPU and the optimizer is torch's own
    on_gpu = next(method.parameters()).is_cuda
    if on_gpu and config.optimizer in ("sgd", "adamw"):
        kwargs["fused"] = True

    return timm.optim.create_optimizer_v2(
        method,
        opt=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        filter_bias_and_bn=config.optimizer != "sgd",
        **kwargs,
    )
