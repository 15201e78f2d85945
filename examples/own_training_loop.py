"""Train on the pairs of a shard set in a webdataset pipeline and a loop of your own: CLSP-SimCLR.

Command:  python examples/own_training_loop.py runs/example/shards
          with a set made by make_a_shard_set.py, or the URL of any other
Time:     15 seconds on a CPU core
"""

import argparse

import torch
import webdataset
from clsp.shards import ShardSet, pair_stream
from clsp.train import AugmentConfig, PretrainConfig, Views, alignment, build_backbone, nt_xent
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser(description="Train CLSP-SimCLR on the pairs of a shard set.")
parser.add_argument("shards", help="folder or URL")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--out", default="backbone.pt")
arguments = parser.parse_args()

# A small ResNet, SimCLR's projector, augmentations for digits. Any of the three may be yours.
small = {"channels": [16, 16, 32, 64], "layers": [1, 1, 1, 1]}
gentle = AugmentConfig(crop_scale=0.65, flip=False, saturation=0, hue=0, grey_probability=0)
config = PretrainConfig(backbone="resnet18", backbone_kwargs=small, augment=gentle)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
backbone = build_backbone(config)
projector = nn.Sequential(nn.Linear(backbone.num_features, 256), nn.ReLU(), nn.Linear(256, 64))
model = nn.Sequential(backbone, projector).to(device)
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
views = Views(config, ShardSet(arguments.shards).size, device)

step = 0
for epoch in range(arguments.epochs):
    # Another seed, another order and other candidates.
    stream = pair_stream(arguments.shards, seed=epoch).batched(64, partial=False)
    losses = []

    for batch in webdataset.WebLoader(stream, batch_size=None):
        # Two views of the anchor, a third one of its synthetic positive
        images = (batch["anchor"], batch["anchor"], batch["candidate"])
        inputs = [views(image, view, step, rank=0) for view, image in enumerate(images)]
        z1, z2, z3 = (F.normalize(model(x_BCHW), dim=1) for x_BCHW in inputs)

        # The positive attracts view 1, more and more, and is nobody's negative.
        weight = min(1.0, epoch / 10)
        loss = nt_xent(z1, z2, temperature=0.1) + weight * alignment(z1, z3)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        step += 1

    print(f"epoch {epoch + 1}: loss {sum(losses) / len(losses):.3f}")

torch.save(backbone.state_dict(), arguments.out)
