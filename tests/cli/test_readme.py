"""Every command of the README, word for word but for the sizes."""

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, SMALL_NETWORKS, run_make, settings
from PIL import Image

README = (REPOSITORY / "README.md").read_text()
COMMANDS = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.strip().splitlines()
]


@pytest.fixture(scope="module")
def images_of_cifar_size(tmp_path_factory):
    """A folder with train.parquet and test.parquet in the layout of the hub's CIFAR-10."""
    folder, rng = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for split, count in (("train", 64), ("test", 20)):
        contents = []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(buffer, "PNG")
            contents.append({"bytes": buffer.getvalue(), "path": None})
        labels = [number % 10 for number in range(count)]
        datasets.Dataset.from_dict({"img": contents, "label": labels}).to_parquet(
            folder / f"{split}.parquet"
        )
    return folder


@pytest.mark.slow
def test_every_other_command_of_the_readme(
    clsp, monkeypatch, images_of_cifar_size, shard_set, model_folder, tmp_path_factory
):
    """In the README's order and in one folder, off the hub and with small networks; two processes for four GPUs.

    So it is also the test of the Makefile's targets one after the other, from the training of the diffusion model on.
    """
    cwd = tmp_path_factory.mktemp("readme")
    monkeypatch.chdir(cwd)
    shutil.copytree(shard_set, cwd / "runs" / "demo" / "shards")
    (cwd / "photos").mkdir()
    Image.new("RGB", (48, 40)).save(cwd / "photos" / "grey.png")
    shutil.copytree(model_folder, cwd / "runs" / "demo" / "diffusion")
    small = {
        **SMALL_NETWORKS,
        "anchors.path": images_of_cifar_size,
        "diffusion.path": '""',
        "diffusion.channels": "[32,32]",
        "diffusion.attention": "[false,false]",
        "diffusion.blocks": 1,
        "shards.records": 32,
        "shards.candidates": 2,
        "linear_eval.sweep_lr": "[0.1]",
    }
    one_set = {
        "transfer.only": '["cifar10"]',
        "transfer.sets.cifar10.path": f"{images_of_cifar_size}/train.parquet",
        "transfer.sets.cifar10.test": '""',
        "transfer.sets.cifar10.per_class": 4,
    }
    ran = []
    for line in COMMANDS:
        if line in (
            "make demo",
            "make test",
        ):  # the demo has a test of its own, and this is `make test`
            continue
        if line.startswith("make"):
            words = [word.replace("GPUS=4", "GPUS=2") for word in line.split()[1:]]
            found = run_make(*words, args=settings(small), cwd=cwd)
        else:
            program, *words = shlex.split(line.replace("/tmp/", f"{cwd}/"))
            assert Path(program).name == "clsp"
            given = settings(small | one_set if words[0] == "transfer" else small)
            found = clsp(*words, *(given if "--recipe" in words else []))
        assert found.returncode == 0, f"{line}\n{found.stdout}{found.stderr}"
        ran.append(line)
    assert len(ran) == 24 and (cwd / "runs" / "cifar10" / "report.html").exists()
    commits = (cwd / "runs" / "cifar10" / "shards" / "commits").rglob("*.json")
    assert {json.loads(path.read_text())["made"]["processes"] for path in commits} == {2}
    run = cwd / "runs" / "cifar10" / "pretrain" / "simclr+shards-s0"
    assert json.loads((run / "linear.json").read_text())["result"]["protocol"] == "clsp"


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_the_readme_reads_a_set_with_and_without_clsp(shard_set, monkeypatch, tmp_path):
    with_clsp, without, stream = re.findall(r"```python\n(.*?)```", README, re.S)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "shards").symlink_to(shard_set)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(with_clsp.replace("256", "20").replace("epochs=10", "epochs=2"), names)
    assert names["positives"].shape == (20, 3, 8, 8) and names["positives"].dtype == torch.uint8
    exec(without, names)
    assert len(names["pairs"]) == 40 and len(list(names["records"])) == 16
    exec(stream.replace("256", "20").replace("epochs=10", "epochs=2"), names)
    assert names["positives"].shape[1:] == (3, 8, 8) and names["positives"].dtype == torch.uint8
