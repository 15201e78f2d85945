"""The wheel holds exactly the packages, with all sub-packages and recipes, and works outside the checkout."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

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


def test_shards_and_the_command_line_need_the_base_install_only(shard_set):
    """Reading, checking and looking at a set with torch and everything else of the extra `all` out of reach."""
    extras = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["all"]
    names = {"scikit-learn": "sklearn"}
    blocked = [names.get(line.split(">")[0], line.split(">")[0]) for line in extras]
    assert "torch" in blocked and "timm" in blocked
    code = (
        "import sys; sys.modules.update({name: None for name in sys.argv[2].split(',')}); "
        "from clsp.cli.main import run; "
        "commands = (['verify', '--deep'], ['info'], ['status']); "
        "sys.exit(max(run(['shards', *command, sys.argv[1]]) for command in commands))"
    )
    command = [sys.executable, "-c", code, shard_set, ",".join(blocked)]
    found = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert found.returncode == 0 and "is sound" in found.stdout, found.stderr
