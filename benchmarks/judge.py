"""An independent judge of positives: a small network that is trained on the labels of real images."""

import time
from pathlib import Path

import numpy as np
import torch
from clsp.cli.recipe import Recipe
from clsp.core import computes_bf16
from clsp.evaluate import labelled_sets
from clsp.shards import ImageSource, ShardSet
from torch import nn
from torch.nn import functional


class Judge(nn.Module):
    """Tells the class of an image: a small convolutional network, trained on labels."""

    def __init__(self, classes: int, width: int = 64):
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for out in (width, width, 2 * width, 2 * width):
            layers += [nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
            if len(layers) % 6 == 0:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(channels, classes)

    def forward(self, images_BCHW: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(images_BCHW).mean(dim=(2, 3)))


def train_judge(
    images: ImageSource, epochs: int, flip: bool, batch_size: int = 128
) -> tuple[Judge, float]:
    """Return a judge trained on labelled images, and the seconds that took."""
    torch.manual_seed(0)
    started = time.perf_counter()
    x_NCHW = as_tensor(np.stack([image.image for image in images]))  # its channels lie last
    labels_N = torch.from_numpy(images.labels())
    judge = Judge(int(labels_N.max()) + 1).to(memory_format=torch.channels_last)
    steps = epochs * (len(x_NCHW) // batch_size)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)

    for _ in range(epochs):
        order = torch.randperm(len(x_NCHW))
        for start in range(0, len(order) - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            x_BCHW = shifted(x_NCHW[chosen])
            if flip:
                is_flipped = torch.rand(len(x_BCHW), 1, 1, 1) < 0.5
                x_BCHW = torch.where(is_flipped, x_BCHW.flip(-1), x_BCHW)

            with torch.autocast("cpu", torch.bfloat16, enabled=computes_bf16()):
                logits_BC = judge(x_BCHW)
            loss = functional.cross_entropy(
                logits_BC.float(), labels_N[chosen], label_smoothing=0.1
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()

    return judge.eval(), time.perf_counter() - started


def kept_judge(file: Path, images: ImageSource, epochs: int, flip: bool) -> Judge:
    """Return the judge in a file; where there is none yet, it is trained and kept there."""
    if not file.exists():
        judge, _ = train_judge(images, epochs, flip)
        torch.save(judge.state_dict(), file)
        return judge

    judge = Judge(int(images.labels().max()) + 1)
    judge.load_state_dict(torch.load(file, weights_only=True))
    return judge.eval()


def judge_of(recipe: Recipe, file: Path, epochs: int) -> tuple[Judge, float]:
    """Return the judge of a recipe's labelled images, kept in a file, and its accuracy on the test images.

    It learns from all training images, however few of them are anchors or train a probe.
    """
    anchors = recipe.anchors.model_copy(update={"limit": 0})
    evaluation = recipe.linear_eval.model_copy(update={"train_limit": 0})
    train, test = labelled_sets(anchors, evaluation, ImageSource(anchors).size)
    judge = kept_judge(file, train, epochs, recipe.diffusion.flip)
    return judge, accuracy_of(judge, test)


def accuracy_of(judge: Judge, images: ImageSource) -> float:
    """Return the share of labelled images that a judge knows."""
    found_N = classes_of(judge, np.stack([image.image for image in images]))
    return float((found_N == images.labels()).mean())


def as_tensor(images_NHWC: np.ndarray) -> torch.Tensor:
    """Return images `(N, 3, H, W)` in [-1, 1]."""
    return torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float() / 127.5 - 1


def shifted(x_BCHW: torch.Tensor) -> torch.Tensor:
    """Move every image of a batch by up to a sixteenth of its side, all alike."""
    most = max(1, x_BCHW.shape[-1] // 16)
    down, right = torch.randint(-most, most + 1, (2,)).tolist()
    return x_BCHW.roll((down, right), dims=(2, 3))


@torch.inference_mode()
def classes_of(judge: Judge, images_NHWC: np.ndarray) -> np.ndarray:
    """Return the judge's class of every image."""
    parts = [judge(as_tensor(part)).argmax(dim=1) for part in np.array_split(images_NHWC, 64)]
    return torch.cat(parts).numpy()


def right_candidates(judge: Judge, shards: ShardSet) -> np.ndarray:
    """Return which candidates of a set show their anchor's class, as the judge sees them: bool `(N, K)`."""
    images = []
    for position in range(len(shards)):
        for number in range(shards.candidates):
            images.append(shards.candidate(position, number))

    found_NK = classes_of(judge, np.stack(images)).reshape(len(shards), -1)
    return found_NK == shards.labels()[:, None]
