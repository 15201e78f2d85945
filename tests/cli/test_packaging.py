"""The wheel holds exactly the packages, with all sub-packages and recipes, and works outside the checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import click
import datasets
import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
FOLDERS = ("core", "cli", "evaluate", "generate", "recipes", "shards", "train")
KEPT = {".py", ".pyi", ".toml", ".j2", ".typed"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in (*FOLDERS, "pyproject.toml", "README.md", "LICENSE"):
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    command = [sys.executable, "-m", "build", "--wheel", "--outdir", source / "dist", source]
    subprocess.run(command, check=True, capture_output=True)
    return next((source / "dist").glob("*.whl"))


def test_the_wheel_has_every_file_of_the_packages_and_no_other(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    paths = [
        path
        for folder in FOLDERS
        for path in (REPOSITORY / folder).rglob("*")
        if path.suffix in KEPT
    ]
    assert found == {f"clsp/{path.relative_to(REPOSITORY).as_posix()}" for path in paths}


def test_it_works_outside_the_checkout(wheel, tmp_path):
    """Installed by pip into a folder of its own; its libraries are those of this environment."""
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        site,
        wheel,
    ]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        "import clsp.cli.recipe as r, clsp.generate, clsp.train; from clsp.cli.recipe import load_recipe; "
        f"assert r.__file__.startswith({str(site)!r}), r.__file__; "
        "assert load_recipe('cifar10').sampler.weight == 0.1; clsp.generate.Sampler, clsp.train.METHODS"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    for command in ([sys.executable, "-c", code], [site / "bin" / "clsp", "shards", "--help"]):
        found = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=False
        )
        assert found.returncode == 0, found.stderr
    assert "preview" in found.stdout


def test_every_extra_that_a_message_or_a_page_names_is_there():
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    pages = [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]
    code = [path for folder in FOLDERS for path in (REPOSITORY / folder).rglob("*.py")]
    named = set()
    for path in pages + code:
        named |= set(re.findall(r"clsp\[(\w+)\]", path.read_text()))

    assert named <= set(extras) and {"all", "remote", "heif"} <= named
    assert all("," in line for line in extras["heif"])  # both ends of the range


@pytest.fixture(scope="module")
def base_install(wheel, tmp_path_factory) -> Path:
    """An environment's folder with the wheel and every library but those of the extra `all`."""
    pyproject = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extra = [line.split(">")[0] for line in pyproject["optional-dependencies"]["all"]]
    left_out = (*extra, "scikit_learn", "sklearn")
    assert "torch" in left_out and "timm" in left_out

    site = tmp_path_factory.mktemp("base") / "site"
    site.mkdir()
    for folder in {Path(module.__file__).parents[1] for module in (click, datasets, np)}:
        for path in folder.iterdir():
            ours = path.name.startswith(("clsp", "__editable__"))
            if not ours and not path.name.lower().startswith(left_out) and path.suffix != ".pth":
                (site / path.name).symlink_to(path)

    install = ["pip", "install", "--quiet", "--no-deps", "--no-index", "--target", site, wheel]
    subprocess.run([sys.executable, "-m", *install], check=True, capture_output=True)
    return site


def test_shards_and_the_command_line_need_the_base_install_only(base_install, shard_set, tmp_path):
    images = tmp_path / "images" / "train"
    images.mkdir(parents=True)
    for number in range(4):
        Image.new("RGB", (8, 8), (60 * number, 0, 0)).save(images / f"{number}.png")
    np.save(tmp_path / "made.npy", np.zeros((4, 2, 8, 8, 3), np.uint8))

    source = f"anchors.path={images.parent}"
    made = str(tmp_path / "made")
    start = ["import-npy", str(tmp_path / "made.npy"), "--recipe", "cifar10"]
    commands = [
        ["verify", "--deep", str(shard_set)],
        ["info", str(shard_set)],
        ["status", str(shard_set)],
        [*start, "--set", source, "--out", made],
        ["export", made, "--npy", str(tmp_path / "again.npy")],
        ["push", made, str(tmp_path / "pushed")],
        ["pull", str(tmp_path / "pushed"), str(tmp_path / "pulled")],
        ["verify", str(tmp_path / "pulled")],
    ]
    verbs = [["shards", *command] for command in commands]
    code = (
        "import importlib.util, json, sys; assert importlib.util.find_spec('torch') is None; "
        "from clsp.cli.main import run; "
        "sys.exit(max(run(command) for command in json.loads(sys.argv[1])))"
    )
    found = subprocess.run(
        [sys.executable, "-S", "-c", code, json.dumps([*verbs, ["doctor"]])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(base_install)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0 and "is sound" in found.stdout, found.stderr
    assert "none: torch is not installed" in found.stdout
    assert np.array_equal(np.load(tmp_path / "again.npy"), np.load(tmp_path / "made.npy"))
