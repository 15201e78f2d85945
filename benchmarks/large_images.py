"""Go the whole way with latent diffusion on photographs: autoencoder, diffusion model, shard set, readers, ResNet-50.

    python benchmarks/large_images.py --out /tmp/large

First at 64×64: an autoencoder and a diffusion model on its latents are trained for minutes on crops of photographs, and
a shard set is made, verified and looked at (OUT/64/positives.png). Then at 256×256 with tiny models: 8 anchors and 32
candidates in a lossy set are made, verified, read by webdataset and by `datasets`, and trained on by a ResNet-50 for a
few steps. Every command's time and peak memory is printed and written to OUT/large_images.json. Nothing here is worth
comparing as a result: three photographs are all that the installed libraries bring along.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

CLSP = Path(sys.executable).with_name("clsp")
HERE = Path(__file__).parent

RECIPE = """
[anchors]
path = "{photographs}"
size = {size}

[autoencoder]
channels = [16, 32, 64]
norm_groups = 8
blocks = 1
batch_size = 8
lr = 1e-3
warmup_steps = 50
steps = {autoencoder_steps}
sample_steps = {autoencoder_steps}

[diffusion]
latent = "{out}/autoencoder"
channels = {channels}
attention = {attention}
norm_groups = 16
blocks = 1
dropout = 0.0
batch_size = 32
lr = 5e-4
warmup_steps = 100
ema_decay = 0.995
ema_warmup = true
snr_gamma = 5.0
steps = {steps}
checkpoint_steps = 100

[sampler]
micro_batch = 8

[shards]
candidates = 4
codec = "{codec}"
megabytes = 1

[pretrain]
size = {views}
epochs = {epochs}
batch_size = 8
backbone = "resnet50"
stem = "default"
projector_hidden = 256
projector_out = 64
lr = 0.05
warmup_epochs = 1
workers = 0
trackers = []

[pretrain.synthetic]
weight = 0.3
"""


class Journey:
    """Runs commands of clsp in a folder, and notes the seconds and the memory that each one took."""

    def __init__(self, out: Path):
        self.out = out
        self.rows: list[dict[str, float | str]] = []

    def run(self, name: str, *command: str) -> None:
        """Run a command; its output goes to OUT/NAME.log.

        Raises:
            SystemExit: it failed.
        """
        log = self.out / f"{name.replace(' ', '-')}.log"
        started = time.perf_counter()
        with log.open("wb") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
            _, status, usage = os.wait4(process.pid, 0)

        if status:
            raise SystemExit(f"{name} failed: {log.read_text(encoding='utf-8')[-500:]}")

        megabytes = usage.ru_maxrss / 1024
        seconds = time.perf_counter() - started
        self.rows.append({"command": name, "seconds": seconds, "megabytes": megabytes})
        print(f"  {name:28} {seconds:7.1f} s {megabytes:7.0f} MB", flush=True)

    def clsp(self, name: str, *arguments: object) -> None:
        """Run a command of clsp."""
        self.run(name, str(CLSP), *map(str, arguments))


def write_recipe(out: Path, photographs: Path, **values: object) -> Path:
    """Write the recipe of one of the two sizes; return its path."""
    path = out / "recipe.toml"
    lists = {name: json.dumps(value) for name, value in values.items() if isinstance(value, list)}
    text = RECIPE.format(out=out, photographs=photographs, **{**values, **lists})
    path.write_text(text, encoding="utf-8")
    return path


def cut_photographs(journey: Journey, out: Path, size: int, count: int) -> Path:
    """Cut crops of photographs into the folder of a training split; return the folder above it."""
    folder = out / "photographs"
    script = str(HERE / "photographs.py")
    arguments = ["--size", str(size), "--count", str(count), "--out", str(folder / "train")]
    journey.run(f"crops of {size}", sys.executable, script, *arguments)
    return folder


def make_set(journey: Journey, out: Path, recipe: Path, size: int) -> Path:
    """Train both models, make, verify and preview a set; return it."""
    root = out / "shards"
    chosen = ("--recipe", recipe)
    journey.clsp(
        f"autoencoder {size}", "autoencoder", "train", *chosen, "--out", out / "autoencoder"
    )
    journey.clsp(f"diffusion {size}", "diffusion", "train", *chosen, "--out", out / "diffusion")

    few = ("--set", "anchors.limit=8") if size == 256 else ("--set", "anchors.limit=128")
    model = ("--diffusion", out / "diffusion")
    journey.clsp(f"plan {size}", "shards", "plan", *chosen, *few, *model)
    journey.clsp(f"make {size}", "shards", "make", *chosen, *few, *model, "--out", root)
    journey.clsp(f"verify {size}", "shards", "verify", root, "--deep")
    journey.clsp(f"preview {size}", "shards", "preview", root, "--out", out / "positives.png")
    return root


def read_with_others(root: Path) -> dict[str, int]:
    """Count the images of a set that webdataset and `datasets` read, with nothing of ours."""
    import datasets  # only now: the memory of this process counts as that of a command that it starts
    import webdataset

    # webdataset
    tars = sorted(str(path) for path in root.glob("layer-*/*.tar"))
    pairs = webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8")
    by_webdataset = 0
    for record in pairs:
        by_webdataset += sum(1 for name in record if name.startswith(("anchor.", "c0")))

    # datasets, by the card
    rows = datasets.load_dataset(str(root), split="train")
    by_datasets = 0
    for row in rows:
        images = [value for value in row.values() if hasattr(value, "convert")]
        by_datasets += len(images)

    return {"webdataset": by_webdataset, "datasets": by_datasets}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--autoencoder-steps", type=int, default=1200)
    parser.add_argument("--steps", type=int, default=1500, help="of the diffusion model at 64")
    options = parser.parse_args()
    out = options.out.resolve()

    # 64×64, trained for minutes
    small = out / "64"
    small.mkdir(parents=True, exist_ok=True)
    journey = Journey(small)
    recipe = write_recipe(
        small,
        cut_photographs(journey, small, 64, 2000),
        size=64,
        autoencoder_steps=options.autoencoder_steps,
        steps=options.steps,
        channels=[64, 96, 128],
        attention=[False, False, True],
        codec="webp",
        views=64,
        epochs=2,
    )
    make_set(journey, small, recipe, 64)

    # 256×256, for the size alone
    large = out / "256"
    large.mkdir(exist_ok=True)
    journey.out = large
    recipe = write_recipe(
        large,
        cut_photographs(journey, large, 256, 64),
        size=256,
        autoencoder_steps=20,
        steps=20,
        channels=[32, 32, 64, 64],
        attention=[False, False, False, True],
        codec="webp-90",
        views=224,
        epochs=3,
    )
    root = make_set(journey, large, recipe, 256)

    # Trained on, and read
    run = large / "resnet50"
    journey.clsp("ResNet-50 at 224", "pretrain", "--recipe", recipe, "--shards", root, "--out", run)
    counts = read_with_others(root)
    print(f"  read by webdataset {counts['webdataset']}, by datasets {counts['datasets']} images")

    content = {"commands": journey.rows, "read": counts}
    (out / "large_images.json").write_text(json.dumps(content, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
