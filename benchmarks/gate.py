"""Say how many candidates of a set show their anchor's class, as a judge sees it that is trained on labels.

    python benchmarks/gate.py runs/day/comparison/shards --recipe cifar10:day --judge runs/day/judge.pt --add judge

The judge's own accuracy on the test images stands beside it: it bounds what can be seen. With `--add` the verdicts go
into the set as scores with one column, `right`, 1 or 0: the upper bound of choosing, for it takes labels. A set that
runs have been trained on should not be changed; copy it before.
"""

import argparse
from pathlib import Path

import numpy as np
from clsp.cli.recipe import load_recipe
from clsp.shards import ShardSet
from clsp.shards.reading.scores import add_scores
from judge import judge_of, right_candidates


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", type=Path)
    parser.add_argument("--recipe", default="cifar10:day")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--judge", type=Path, required=True, help="its file; made if not there")
    parser.add_argument("--epochs", type=int, default=8, help="of its training")
    parser.add_argument("--add", default="", metavar="NAME", help="scores to add to the set")
    options = parser.parse_args()

    # The judge
    recipe = load_recipe(options.recipe, options.overrides)
    judge, accuracy = judge_of(recipe, options.judge, options.epochs)
    print(f"the judge knows {accuracy:.1%} of the test images")

    # Its verdicts
    shards = ShardSet(options.set)
    right_NK = right_candidates(judge, shards)
    print(f"{right_NK.mean():.1%} of {right_NK.size} candidates show their anchor's class")

    if options.add:
        keys = [shards.key(position) for position in range(len(shards))]
        add_scores(options.set, options.add, keys, {"right": right_NK.astype(np.float32)})


if __name__ == "__main__":
    main()
