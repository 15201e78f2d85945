"""Compare ways of making and choosing positives: agreement, diversity, hardness, Fréchet distance, AUROC and cost.

One unconditional model and one per number of clusters are trained by `clsp diffusion train`, a set is made by `clsp
shards make` for every way, and `clsp shards score` measures it in the features of the unconditional U-Net, without
labels. Whether a candidate shows its anchor's class is told by a judge that has no part in any of that: a network that
is trained here on the labels of the training images; its own accuracy on the test images stands beside the table.

    python benchmarks/positives.py --recipe digits --out runs/positives

Everything under --out is kept, and a second call goes on where the first one stopped.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from clsp.cli.main import run
from clsp.cli.recipe import load_recipe
from clsp.evaluate import labelled_sets
from clsp.shards import ImageSource, ShardSet, read_scores
from judge import Judge, accuracy_of, right_candidates, train_judge
from sklearn.metrics import roc_auc_score

NAME = "unet"
MEASURES = {"margin": 1, "anchor_rank": -1, "cosine": 1}
"""The measures that choose, with the sign of their better direction."""
KEPT = (1, 2, 4)


@dataclass(frozen=True)
class Way:
    """Holds a way of making positives: which model, and the sampler's settings."""

    name: str
    clusters: int = 0
    settings: tuple[str, ...] = ()


def ways(clusters: list[int]) -> list[Way]:
    """List what is compared: each thing alone, and what it may be good with."""
    window = ("sampler.window=[300,999]",)
    slerp = ("sampler.mixing=slerp",)
    found = [
        Way("unconditional"),
        Way("w = 0.3", 0, ("sampler.weight=0.3",)),
        Way("slerp", 0, slerp),
        Way("window", 0, window),
        Way("slerp and window", 0, (*slerp, *window)),
    ]
    for count in clusters:
        found.append(Way(f"{count} clusters", count))
        found.append(Way(f"{count} clusters, guidance 2", count, ("sampler.guidance=2",)))
        found.append(Way(f"{count} clusters, no anchor", count, ("sampler.weight=1",)))
    return found


def clsp(*arguments: str) -> float:
    """Run a command of clsp; return the seconds it took."""
    started = time.perf_counter()
    code = run(list(arguments))
    if code:
        raise SystemExit(code)
    return time.perf_counter() - started


def remembered(path: Path, seconds: float) -> float:
    """Return the seconds that a stage took when it was really done, by a file beside it."""
    if not path.exists():
        path.write_text(json.dumps(seconds), encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


class Comparison:
    """Makes, measures and judges a set for every way."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.out: Path = options.out
        self.settings: list[str] = []
        for override in options.overrides:
            self.settings += ["--set", override]
        self.recipe = load_recipe(options.recipe, options.overrides)
        self.common = ("--recipe", options.recipe, *self.settings)

    def model(self, clusters: int) -> Path:
        """Train the model with so many clusters, 0: none, unless it is there."""
        plain = self.out / "plain" / "diffusion"
        given = Path(self.options.diffusion) if self.options.diffusion else None
        if not clusters:
            if given:
                return given
            spent = clsp("diffusion", "train", *self.common, "--out", str(plain))
            remembered(self.out / "plain" / "seconds.json", spent)
            return plain

        folder = self.out / f"clusters-{clusters}" / "diffusion"
        spent = clsp(
            "diffusion", "train", *self.common, *self.condition(clusters), "--out", str(folder)
        )
        remembered(folder.parent / "seconds.json", spent)
        return folder

    def condition(self, clusters: int) -> list[str]:
        """Return the settings of a model with clusters."""
        if not clusters:
            return []
        encoder = self.options.cluster_encoder or f"unet:{self.model(0)}"
        words = []
        for setting in (
            "diffusion.condition=clusters",
            f"diffusion.clusters={clusters}",
            f"diffusion.cluster_encoder={encoder}",
        ):
            words += ["--set", setting]
        return words

    def measure(self, way: Way, judge: Judge) -> dict[str, float | str]:
        """Make and score the set of a way; return its row."""
        model = self.model(way.clusters)
        folder = self.out / "sets" / way.name.replace(" ", "-").replace(",", "")
        folder.mkdir(parents=True, exist_ok=True)
        root = folder / "shards"
        changes = self.condition(way.clusters)
        for setting in way.settings:
            changes += ["--set", setting]

        spent = clsp(
            "shards", "make", *self.common, *changes, "--diffusion", str(model), "--out", str(root)
        )
        made = remembered(folder / "seconds.json", spent)
        encoder = f"unet:{self.model(0)}"
        clsp("shards", "score", str(root), "--encoder", encoder, "--name", NAME)

        # What the judge sees
        shards = ShardSet(root)
        right_NK = right_candidates(judge, shards)

        # The measures, alone and as a choice
        scores = read_scores(root / "scores" / f"{NAME}.parquet", len(shards))
        facts = json.loads((folder / f"shards-quality-{NAME}.json").read_text())["result"]
        row: dict[str, float | str] = {
            "way": way.name,
            "agreement": 100 * right_NK.mean(),
            "cosine": scores["cosine"].mean(),
            "diversity": scores["diversity"].mean(),
            "frechet": facts["frechet_distance"],
            "seconds": made,
        }
        for measure, sign in MEASURES.items():
            values_NK = sign * scores[measure]
            row[f"auroc {measure}"] = roc_auc_score(right_NK.ravel(), values_NK.ravel())
            order_NK = np.argsort(-values_NK, axis=1, kind="stable")
            for kept in KEPT:
                chosen_NK = np.take_along_axis(right_NK, order_NK[:, :kept], axis=1)
                row[f"best {kept} by {measure}"] = 100 * chosen_NK.mean()
        return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--diffusion", default="", help="an unconditional model that is there")
    parser.add_argument("--clusters", type=int, nargs="*", default=[10, 30, 100])
    parser.add_argument("--cluster-encoder", default="", help="default: the unconditional U-Net")
    parser.add_argument("--judge-epochs", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=[], help="names of ways; default: all")
    options = parser.parse_args()

    comparison = Comparison(options)
    recipe = comparison.recipe
    plain = comparison.model(0)

    # The judge
    size = ImageSource(recipe.anchors).size
    train, test = labelled_sets(
        recipe.anchors.model_copy(update={"limit": 0}), recipe.linear_eval, size
    )
    judge, spent = train_judge(train, options.judge_epochs, recipe.diffusion.flip)
    known = accuracy_of(judge, test)
    print(f"judge: {100 * known:.1f} % of {len(test)} test images, {spent:.0f} s", flush=True)

    # A row per way
    rows = []
    for way in ways(options.clusters):
        if options.only and way.name not in options.only:
            continue
        rows.append(comparison.measure(way, judge))
        (options.out / "positives.json").write_text(json.dumps(rows, indent=1, default=float))

    headings = list(rows[0])
    print(f"\nmodel: {plain}\n| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for row in rows:
        cells = [value if isinstance(value, str) else f"{value:.3g}" for value in row.values()]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
