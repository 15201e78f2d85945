"""Pretrain by a method of your own, here Barlow Twins, with the loop, the order and the resume of `clsp pretrain`.

Command:  python examples/own_method.py runs/example/shards --out runs/example/barlow_twins
          with a set made by make_a_shard_set.py
Time:     15 seconds on a CPU core
Every method can have the synthetic term, a third ordinary view or AdaInf's inflation: set `synthetic`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from clsp.shards import ShardSet
from clsp.train import AugmentConfig, Method, PretrainConfig, SyntheticConfig, pretrain, register

REDUNDANCY = 0.005  # λ of the paper, the weight of the entries beside the diagonal


@register("barlow_twins")
class BarlowTwins(Method):
    """Makes the cross-correlation of two views the identity (Zbontar et al., ICML 2021, equation 1); one process."""

    def base_loss(
        self, y_BD: Sequence[torch.Tensor], views: Sequence[torch.Tensor], labels_B: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return `invariance` and `redundancy`, which are added up."""
        one, other = ((y - y.mean(0)) / (y.std(0) + 1e-6) for y in y_BD)
        correlation_DD = one.float().T @ other.float() / len(one)
        diagonal = correlation_DD.diagonal()
        # Σ_i (1 - C_ii)² + λ·Σ_i Σ_(j≠i) C_ij²
        invariance = (diagonal - 1).square().sum()
        redundancy = correlation_DD.square().sum() - diagonal.square().sum()
        return {"invariance": invariance, "redundancy": REDUNDANCY * redundancy}


parser = argparse.ArgumentParser(description="Pretrain by Barlow Twins with synthetic positives.")
parser.add_argument("shards")
parser.add_argument("--out", type=Path, required=True)
parser.add_argument("--epochs", type=int, default=30)
arguments = parser.parse_args()

small = {"channels": [16, 16, 32, 64], "layers": [1, 1, 1, 1]}
config = PretrainConfig(
    method="barlow_twins",
    epochs=arguments.epochs,
    batch_size=64,
    backbone_kwargs=small,
    projector_hidden=256,
    projector_out=64,
    optimizer="adamw",
    lr=1e-2,
    warmup_epochs=3,
    augment=AugmentConfig(crop_scale=0.65, flip=False, saturation=0, hue=0, grey_probability=0),
    synthetic=SyntheticConfig(source="shards", weight=1.0),
    trackers=(),
)
backbone = pretrain(ShardSet(arguments.shards), config, arguments.out)
print(f"backbone: {backbone}, losses: {arguments.out / 'log.jsonl'}")
