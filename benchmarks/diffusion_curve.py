"""Follow a diffusion model while it trains: how good its positives are after so many steps.

    python benchmarks/diffusion_curve.py --recipe cifar10:day --diffusion runs/day/diffusion --out runs/day/curve

It waits for the checkpoints of a `clsp diffusion train` that runs beside it, and measures one whenever `--every` steps
have been done since the last one measured; it ends with the training. A second call goes on where the first one
stopped. The averaged weights make a small set with the recipe's sampler; a judge, trained here on the labels of the
training images, says how many candidates keep their anchor's class (its own accuracy on the test images stands beside
it), and `clsp shards score` gives Fréchet distance, hardness (the cosine, and an ordinary view's) and diversity in
the features of `--encoder`. `benchmarks/draw_curves.py` draws them.
"""

import argparse
import json
import shutil
import time
from contextlib import suppress
from pathlib import Path

import torch
from clsp.cli.main import run
from clsp.cli.recipe import Recipe, load_recipe
from clsp.generate import build_unet
from clsp.shards import ImageSource, ShardSet
from diffusers import DDPMPipeline, DDPMScheduler
from judge import Judge, judge_of, right_candidates

SECONDS_BETWEEN_LOOKS = 10
CLASSES = ("condition.json", "clusters.parquet")
"""What a model with classes has beside its U-Net."""


def take_checkpoint(training: Path, recipe: Recipe, size: int, out: Path) -> int:
    """Write a model of the averaged weights that a training has in its checkpoint; return its steps.

    Args:
        size: of its images, in pixels.
    """
    state = torch.load(training / "checkpoint.pt", map_location="cpu", weights_only=True)

    # The network that it trains
    condition = training / CLASSES[0]
    classes = 0
    if condition.exists():
        classes = json.loads(condition.read_text(encoding="utf-8"))["classes"]
    net = build_unet(recipe.diffusion, size, classes)

    # Its averaged weights
    for weights, average in zip(net.parameters(), state["ema"]["shadow_params"], strict=True):
        weights.data.copy_(average)

    shutil.rmtree(out, ignore_errors=True)
    schedule = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    DDPMPipeline(net, schedule).save_pretrained(out)
    for name in CLASSES:
        if (training / name).exists():
            shutil.copy(training / name, out / name)

    return state["step"]


class Curve:
    """Measures a model after every so many steps."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.out: Path = options.out
        self.rows_file = self.out / "curve.json"
        self.recipe = load_recipe(options.recipe, options.overrides)
        self.size = ImageSource(self.recipe.anchors).size

        # The recipe of the small sets
        self.out.mkdir(parents=True, exist_ok=True)
        anchors = self.recipe.anchors.model_copy(update={"limit": options.anchors})
        shards = self.recipe.shards.model_copy(update={"candidates": options.candidates})
        small = self.recipe.model_copy(update={"anchors": anchors, "shards": shards})
        small.save(self.out / "recipe.toml")

        self.accuracy = 0.0
        self.rows: list[dict[str, float]] = []
        if self.rows_file.exists():
            self.rows = json.loads(self.rows_file.read_text(encoding="utf-8"))["rows"]

    def measure(self, judge: Judge, model: Path, step: int) -> None:
        """Measure a model after so many steps, and add its row to the file."""
        # A set of it
        root = self.out / "sets" / f"step-{step:08d}"
        recipe = ("--recipe", str(self.out / "recipe.toml"))
        clsp("shards", "make", *recipe, "--diffusion", str(model), "--out", str(root))

        # What the judge and the measures see
        row = {"step": step, "agreement": float(right_candidates(judge, ShardSet(root)).mean())}
        if self.options.encoder:
            name = "curve"
            clsp(
                *("shards", "score", str(root), *recipe),
                *("--encoder", self.options.encoder, "--name", name),
            )
            path = root.with_name(f"{root.name}-quality-{name}.json")
            facts = json.loads(path.read_text(encoding="utf-8"))["result"]
            row["frechet_distance"] = facts["frechet_distance"]
            row["cosine"] = facts["means"]["cosine"]
            row["view_cosine"] = facts["means"]["augmentation_cosine"]
            row["diversity"] = facts["means"]["diversity"]

        self.rows.append(row)
        content = {"judge": self.accuracy, "rows": self.rows}
        self.rows_file.write_text(json.dumps(content, indent=1), encoding="utf-8")
        print(row, flush=True)

    def follow(self) -> None:
        """Measure checkpoints until the training has ended, then the model itself."""
        file = self.out / "judge.pt"
        judge, self.accuracy = judge_of(self.recipe, file, self.options.judge_epochs)
        print(f"judge: {self.accuracy:.1%} of the test images", flush=True)
        training: Path = self.options.diffusion

        # While it trains
        while not (training / "model_index.json").exists():
            if self._steps() >= self._last() + self.options.every:
                model = self.out / "model"
                with suppress(FileNotFoundError):  # it has ended this very moment
                    step = take_checkpoint(training, self.recipe, self.size, model)
                    if step > self._last():
                        self.measure(judge, model, step)
            time.sleep(SECONDS_BETWEEN_LOOKS)

        # Its end
        if self._last() < self.recipe.diffusion.steps:
            self.measure(judge, training, self.recipe.diffusion.steps)

    def _last(self) -> int:
        """Return the steps of the model that was measured last."""
        return int(self.rows[-1]["step"]) if self.rows else 0

    def _steps(self) -> int:
        """Return the steps that the training has logged; 0 before its first checkpoint."""
        log = self.options.diffusion / "log.jsonl"
        if not (self.options.diffusion / "checkpoint.pt").exists():
            return 0
        return json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["step"]


def clsp(*arguments: str) -> None:
    code = run(list(arguments))
    if code:
        raise SystemExit(code)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="cifar10")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--diffusion", type=Path, required=True, help="the folder of the training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=1000, help="steps between two points")
    parser.add_argument("--anchors", type=int, default=500)
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--encoder", default="", help="a run, for the measures in its features")
    parser.add_argument("--judge-epochs", type=int, default=8)
    Curve(parser.parse_args()).follow()


if __name__ == "__main__":
    main()
