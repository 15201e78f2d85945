"""Train on the pairs of a shard set in plain PyTorch: of clsp only the loader, everything else your own.

Command:  python examples/plain_pytorch.py runs/example/shards
          with a set made by make_a_shard_set.py, or the URL of any other
Time:     10 seconds on a CPU core
"""

import argparse

import torch
from clsp.shards import ShardSet
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser(description="Train an encoder on the pairs of a shard set.")
parser.add_argument("shards", help="folder or URL")
parser.add_argument("--epochs", type=int, default=30)
parser.add_argument("--out", default="encoder.pt")
arguments = parser.parse_args()

encoder = nn.Sequential(
    *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1)),
    *(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 64)),
)
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
encoder.to(device)
optimizer = torch.optim.AdamW(encoder.parameters(), lr=3e-3)

# The order and the candidates drawn depend on the seed alone; `cache` decodes every image once.
loader = ShardSet(arguments.shards).loader(
    batch_size=64, epochs=arguments.epochs, seed=0, cache="auto"
)
for step, batch in enumerate(loader, start=1):
    images = (batch.anchors_BCHW, batch.candidates_BCHW)
    anchors, candidates = (image.to(device).float() / 127.5 - 1 for image in images)

    # InfoNCE: an anchor's positive is its candidate, all other candidates are its negatives
    z1 = F.normalize(encoder(anchors), dim=1)
    z2 = F.normalize(encoder(candidates), dim=1)
    loss = F.cross_entropy(z1 @ z2.T / 0.1, torch.arange(len(z1), device=device))

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % (len(loader.dataset) // 64) == 0:
        print(f"step {step}: loss {loss.item():.3f}")

torch.save(encoder.state_dict(), arguments.out)
