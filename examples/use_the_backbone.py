"""Embed images with a pretrained backbone, and classify them by their nearest neighbours.

Command:  python examples/use_the_backbone.py runs/example/barlow_twins/backbone
          with the backbone of any run: of own_method.py here, of `clsp pretrain`, of `make demo`
Time:     5 seconds on a CPU core
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from clsp.evaluate import knn_predict
from clsp.shards import AnchorsConfig, ImageSource
from clsp.train import embed, load_backbone

parser = argparse.ArgumentParser(description="Classify digits by the features of a backbone.")
parser.add_argument("backbone", type=Path)
arguments = parser.parse_args()

# A timm model in eval mode, and how its images were normalised.
model, config = load_backbone(arguments.backbone)
mean = torch.tensor(config["mean"])[:, None, None]
std = torch.tensor(config["std"])[:, None, None]
size = config["input_size"][-1]


def features_and_labels(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the features `(N, F)` and labels `(N,)` of a split of scikit-learn's digits."""
    images = ImageSource(AnchorsConfig(path="digits", split=split, size=size))
    pixels = torch.from_numpy(np.stack([image.image for image in images]))
    batch = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std

    features = torch.cat([embed(model, part) for part in batch.split(256)])
    return features, torch.tensor([image.label for image in images])


train, train_labels = features_and_labels("train")
test, test_labels = features_and_labels("test")
predicted = knn_predict(train, train_labels, test, classes=10, k=20, temperature=0.07)
accuracy = 100 * (predicted == test_labels).float().mean()
print(f"{len(test)} test images, {train.shape[1]} features: kNN accuracy {accuracy:.1f} %")
