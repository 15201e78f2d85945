"""Train lightly's own SimCLR, its transform, head and loss, with the synthetic positives of a shard set.

Command:  python examples/lightly_simclr.py runs/example/shards
          with a set made by make_a_shard_set.py, after: pip install lightly
Time:     a minute on a CPU core
"""

import argparse

import torch
from clsp.shards import ShardSet
from clsp.train import PretrainConfig, build_backbone
from lightly.loss import NegativeCosineSimilarity, NTXentLoss
from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms import SimCLRTransform
from torchvision.transforms.functional import to_pil_image

parser = argparse.ArgumentParser(description="Train lightly's SimCLR on pairs.")
parser.add_argument("shards", help="folder or URL")
parser.add_argument("--epochs", type=int, default=10)
parser.add_argument("--out", default="backbone.pt")
arguments = parser.parse_args()

shards = ShardSet(arguments.shards)
small = {"channels": [16, 16, 32, 64], "layers": [1, 1, 1, 1]}
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
backbone = build_backbone(PretrainConfig(backbone_kwargs=small)).to(device)
head = SimCLRProjectionHead(backbone.num_features, 256, 64).to(device)
transform = SimCLRTransform(input_size=shards.size, gaussian_blur=0.0, min_scale=0.5)
contrast, similarity = NTXentLoss(temperature=0.1), NegativeCosineSimilarity()
optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=3e-3)


def views(images_BCHW: torch.Tensor, number: int) -> torch.Tensor:
    """Return view `number`, 0 or 1, of every image; a call draws anew."""
    made = [transform(to_pil_image(image))[number] for image in images_BCHW]
    return head(backbone(torch.stack(made).to(device)))


loader = shards.loader(batch_size=64, epochs=arguments.epochs, seed=0)
for step, batch in enumerate(loader, start=1):
    z1, z2 = views(batch.anchors_BCHW, 0), views(batch.anchors_BCHW, 1)
    z3 = views(batch.candidates_BCHW, 0)

    # SimCLR, and the synthetic positive, which is nobody's negative: 2 - 2·cos(z1, z3)
    loss = contrast(z1, z2) + 0.3 * (2 + 2 * similarity(z1, z3))

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.3f}")

torch.save(backbone.state_dict(), arguments.out)
