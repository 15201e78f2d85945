"""What clipping the predicted x0 does to the positives of a briefly trained model, scheduler by scheduler.

    clsp diffusion train --recipe digits --set diffusion.steps=650 --out runs/brief
    python benchmarks/clipping.py --recipe digits --diffusion runs/brief

Beside ours stands diffusers' own `thresholding` for UniPC. The judge of the label agreement is a support vector
machine on the pixels of all train images.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from clsp.cli.recipe import load_recipe
from clsp.generate import Sampler, SamplerConfig, load_diffusion, sampler
from clsp.shards import ImageSource
from diffusers import UniPCMultistepScheduler
from sklearn.svm import SVC

COLOURED = 48
"""Grey values between a pixel's channels from which a pixel of a grey image counts as coloured."""

SETTINGS: dict[str, dict[str, Any]] = {
    "DDIM-100, η = 0.1, the paper's": {
        "scheduler": "ddim",
        "steps": 100,
        "eta": 0.1,
        "share_anchor": False,
    },
    "DDIM-20, η = 1": {"scheduler": "ddim", "steps": 20, "eta": 1.0},
    "DDIM-20, η = 0": {"scheduler": "ddim", "steps": 20},
    "UniPC-16": {"scheduler": "unipc", "steps": 16},
    "DPM-Solver++-16": {"scheduler": "dpmsolver++", "steps": 16},
}


def thresholding_scheduler(
    config: SamplerConfig, noise_schedule: dict[str, Any]
) -> UniPCMultistepScheduler:
    """Make diffusers' UniPC with its own clamp of x0, corrector and all."""
    scheduler = UniPCMultistepScheduler(
        **noise_schedule,
        timestep_spacing="trailing",
        final_sigmas_type="zero",
        thresholding=True,
        dynamic_thresholding_ratio=1.0,
        sample_max_value=1.0,
    )
    scheduler.set_timesteps(config.steps)
    return scheduler


def grey(images_NHWC: np.ndarray) -> np.ndarray:
    """Return the mean over the channels as features `(N, H·W)`, 0 … 1."""
    return images_NHWC.mean(-1).reshape(len(images_NHWC), -1) / 255


def sample(make: Sampler, images_NHWC: np.ndarray, keys: list[str], candidates: int) -> np.ndarray:
    """Return the candidates of the images with these keys, `(N·K, H, W, C)`."""
    micro_batch = make.config.micro_batch
    parts = []
    for start in range(0, len(keys), micro_batch):
        end = min(start + micro_batch, len(keys))
        parts.append(make(images_NHWC[start:end], keys[start:end], candidates))

    return np.concatenate(parts).reshape(-1, *images_NHWC.shape[1:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--diffusion", type=Path, required=True)
    parser.add_argument("--anchors", type=int, default=256)
    parser.add_argument("--candidates", type=int, default=2)
    arguments = parser.parse_args()

    # The judge
    recipe = load_recipe(arguments.recipe)
    anchors = ImageSource(recipe.anchors)
    images_NHWC = np.stack([anchor.image for anchor in anchors])
    labels_N = np.asarray(anchors.labels())
    judge = SVC(C=10).fit(grey(images_NHWC), labels_N)

    test = ImageSource(recipe.anchors.model_copy(update={"split": "test"}))
    test_images = np.stack([anchor.image for anchor in test])
    known = judge.score(grey(test_images), test.labels())
    print(f"the judge knows {100 * known:.1f} % of the test images")

    # The positives
    model = load_diffusion(str(arguments.diffusion), anchors.size)
    keys = [anchor.key for anchor in anchors][: arguments.anchors]
    labels = np.repeat(labels_N[: arguments.anchors], arguments.candidates)

    def measure(name: str, config: SamplerConfig) -> None:
        made_NHWC = sample(Sampler(model, config), images_NHWC, keys, arguments.candidates)
        judged = judge.predict(grey(made_NHWC))
        agreement = 100 * (judged == labels).mean()
        spread = np.ptp(made_NHWC.astype(int), axis=-1)
        coloured = 100 * (spread > COLOURED).mean()
        print(f"| {name} | {agreement:.1f} | {coloured:.1f} |", flush=True)

    print("| sampler | label agreement, % | coloured pixels, % |\n|---|---|---|")
    for name, settings in SETTINGS.items():
        for clip in (False, True):
            config = SamplerConfig(**{"clip": clip, "threads": 2, **settings})
            measure(f"{name}, {'clipped' if clip else 'not clipped'}", config)

    own = sampler.make_scheduler
    sampler.make_scheduler = thresholding_scheduler
    measure("UniPC-16, diffusers' thresholding", SamplerConfig(clip=False, threads=2))
    sampler.make_scheduler = own


if __name__ == "__main__":
    main()
