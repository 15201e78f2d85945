"""`make demo` with tiny networks: every stage real, its table, pictures and page, and running it again."""

import base64
import io
import json
import re

import numpy as np
import pytest
from clsp.shards import ShardSet, verify_set
from conftest import SMALL_NETWORKS, run_make, settings
from PIL import Image

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """`make demo` with tiny networks and one seed: every stage real."""
    folder = tmp_path_factory.mktemp("demo")
    args = [*settings({**SMALL_NETWORKS, "anchors.limit": 64, "shards.records": 32}), "--seeds=1"]
    found = run_make("demo", args=args, cwd=folder)
    assert found.returncode == 0, found.stdout + found.stderr
    again = [
        "reproduce",
        "--recipe",
        "digits",
        "--out",
        "runs/demo",
        *args,
    ]  # what the Makefile runs
    return folder / "runs" / "demo", again, found.stdout


def test_demo_writes_table_pictures_and_page(demo):
    root, _, output = demo
    names = ["simclr", "simclr+augmentation", "simclr+shards"]
    assert all(name in output for name in names) and "linear top-1" in output and "…" not in output
    results = json.loads((root / "results.json").read_text())
    assert [row["name"] for row in results["summary"]] == names
    assert all(0 <= run["metrics"]["linear.top1"] <= 100 for run in results["runs"])
    assert (
        len({run["set"] for run in results["runs"]}) == 1
        and verify_set(root / "shards", deep=True) == []
    )
    shards = ShardSet(root / "shards")
    assert shards.candidates == 4 and results["runs"][0]["data"] == shards.identity
    assert (
        "scores/simclr.parquet" in shards.manifest.files
    )  # added after the runs, so the set's ID is another
    for name in ("contact-sheet.png", "curves.png"):
        assert np.asarray(Image.open(root / name).convert("L")).std() > 10, f"{name} is blank"


def test_report_is_self_contained(demo):
    page = (demo[0] / "report.html").read_text()
    sources = [
        source
        for source in re.findall(r'(?:src|href)="([^"]*)"', page)
        if not source.startswith("#")
    ]
    assert len(sources) == 5 and sources[0] == "data:,"  # the page's icon, four pictures
    for source in sources[1:]:
        assert source.startswith("data:image/png;base64,")
        image = Image.open(io.BytesIO(base64.b64decode(source.split(",")[1])))
        assert min(image.size) > 50
    namespaces = r'xmlns(:xlink)?="[^"]*"'
    assert "://" not in re.sub(rf'data:[^"]*|{namespaces}', "", page) and "simclr+shards" in page


def test_demo_again_uses_what_is_finished_and_a_lost_stage_is_made_again(demo, clsp, monkeypatch):
    root, command, _ = demo
    monkeypatch.chdir(root.parents[1])
    before = (root / "results.json").stat().st_mtime_ns
    assert clsp(*command).returncode == 0
    assert (root / "results.json").stat().st_mtime_ns == before
    lost = root / "stages" / "knn-simclr-s0.json"
    result = root / "pretrain" / "simclr-s0" / "knn.json"
    good = json.loads(result.read_text())["result"]
    lost.unlink()
    result.unlink()
    found = clsp(*command)
    assert (
        found.returncode == 0
        and "knn-simclr-s0" in found.stdout
        and "linear-eval-simclr-s0" not in found.stdout
    )
    assert json.loads(result.read_text())["result"] == good
    found = clsp(*command, "--set=sampler.steps=3")
    assert found.returncode == 2 and "another recipe" in found.stderr
