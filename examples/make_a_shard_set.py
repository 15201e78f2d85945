"""Make a shard set from Python: anchors, a diffusion model, a plan, shards and their seal.

Command:  python examples/make_a_shard_set.py runs/example
          with a model of your own: --diffusion DIR (its training is then left out)
Time:     a minute on a CPU core
Run it again after an interruption: it goes on where it was.
"""

import argparse
from pathlib import Path

import torch
from clsp.generate import (
    DiffusionConfig,
    Sampler,
    SamplerConfig,
    load_diffusion,
    make_plan,
    make_shards,
    train_diffusion,
)
from clsp.shards import (
    AnchorsConfig,
    ImageSource,
    ShardsConfig,
    ShardSet,
    contact_sheet,
    write_plan,
)

parser = argparse.ArgumentParser(description="Make a shard set of digits.")
parser.add_argument("out", type=Path)
parser.add_argument("--diffusion", type=Path)
parser.add_argument("--steps", type=int, default=300, help="of the diffusion model's training")
parser.add_argument("--limit", type=int, default=256, help="anchors")
arguments = parser.parse_args()

# The anchors: a hub id, a folder of images or, here, scikit-learn's digits.
anchors = ImageSource(AnchorsConfig(path="digits", limit=arguments.limit))

# The diffusion model: DDPM on the anchors, in diffusers' format.
network = {"channels": (32, 64), "attention": (False, False), "blocks": 1, "norm_groups": 8}
rates = {"lr": 3e-3, "lr_schedule": "cosine", "warmup_steps": 20, "ema_decay": 0.98}
training = DiffusionConfig(steps=arguments.steps, flip=False, dropout=0.0, **network, **rates)
folder = arguments.diffusion or train_diffusion(anchors, training, arguments.out / "diffusion")
model = load_diffusion(str(folder), anchors.size)

# The plan says everything that determines the content; the same plan gives the same bytes.
settings = SamplerConfig(dtype="float32")
plan = make_plan(anchors, model, settings, ShardsConfig(candidates=4, records=128))
root = arguments.out / "shards"
write_plan(root, plan)

# The last shard seals the set.
sampler = Sampler(model, settings, "cuda" if torch.cuda.is_available() else "cpu")
set_id = make_shards(root, plan, anchors, sampler)
print(f"{root}: set {set_id}")
contact_sheet(ShardSet(root)).save(arguments.out / "contact-sheet.png")
