"""The scripts in examples/, run as their docstrings say, one after the other on each other's results."""

import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
from clsp.shards import ShardSet, verify_set
from conftest import ON_CPU, REPOSITORY

EXAMPLES = REPOSITORY / "examples"


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, EXAMPLES / f"{name}.py", *arguments]
    done = subprocess.run(
        [str(word) for word in command], env=ON_CPU, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A shard set by the first example, with a model trained for a few steps."""
    out = tmp_path_factory.mktemp("examples") / "example"
    printed = run("make_a_shard_set", out, "--steps", 4, "--limit", 64)
    return SimpleNamespace(out=out, root=out / "shards", printed=printed)


@pytest.mark.slow
def test_the_shard_set_is_sealed_and_sound(made):
    assert verify_set(made.root, deep=True) == []
    shards = ShardSet(made.root)
    assert (len(shards), shards.candidates) == (64, 4)
    assert shards.set_id in made.printed
    assert (made.out / "contact-sheet.png").stat().st_size > 0


@pytest.mark.slow
def test_a_loop_of_ones_own_trains_on_it(made):
    printed = run("own_training_loop", made.root, "--epochs", 2, "--out", made.out / "backbone.pt")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)$", printed, re.M)]
    assert len(losses) == 2
    assert (made.out / "backbone.pt").exists()


@pytest.mark.slow
def test_a_loop_in_plain_pytorch_trains_on_it(made):
    printed = run("plain_pytorch", made.root, "--epochs", 60, "--out", made.out / "encoder.pt")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)$", printed, re.M)]
    assert len(losses) == 60 and losses[-1] < losses[0]
    assert (made.out / "encoder.pt").exists()


@pytest.mark.slow
def test_lightly_trains_on_it(made):
    pytest.importorskip("lightly", reason="lightly is not installed (pip install lightly)")
    printed = run("lightly_simclr", made.root, "--epochs", 2, "--out", made.out / "lightly.pt")
    assert len(re.findall(r"^step \d: loss [\d.]+$", printed, re.M)) == 2
    assert (made.out / "lightly.pt").exists()


@pytest.mark.slow
def test_a_method_of_ones_own_gives_a_backbone_that_classifies(made):
    run("own_method", made.root, "--out", made.out / "run", "--epochs", 10)
    printed = run("use_the_backbone", made.out / "run" / "backbone")
    found = re.search(r"359 test images, 64 features: kNN accuracy ([\d.]+) %", printed)
    assert found, printed
    assert float(found[1]) > 20  # chance is 10


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_says_its_command_and_time_and_uses_public_names(path):
    text = path.read_text()
    assert f"Command:  python examples/{path.name} " in text
    assert re.search(r"^Time:     .*(?:second|minute)", text, re.M)
    assert len(text.splitlines()) < 60

    packages = re.findall(r"^(?:from|import) (clsp[\w.]*)", text, re.M)
    assert packages
    assert all(name.count(".") == 1 for name in packages)
