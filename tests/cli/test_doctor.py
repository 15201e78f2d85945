"""`clsp doctor` says what is so on this machine, in words and as JSON."""

import json
import os
import platform
from importlib.metadata import version

from clsp.cli import doctor
from clsp.core import memory


def test_it_says_the_facts_in_words_and_as_json(clsp, monkeypatch, tmp_path, bf16):
    monkeypatch.setenv("CLSP_CACHE", str(tmp_path / "new"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    words = clsp("doctor")
    found = json.loads(clsp("doctor", "--json").stdout)

    assert words.returncode == 0 and "hf_secret" not in words.stdout + json.dumps(found)
    for package in ("clsp", "torch", "click", "timm"):
        assert found["versions"][package] == version(package)
        assert f"{package:<12} {version(package)}" in words.stdout
    assert found["python"].startswith(platform.python_version())
    assert found["cores"]["scheduler"] == len(os.sched_getaffinity(0))
    assert [device["bf16"] for device in found["devices"]] == [bf16] * len(found["devices"])
    assert found["variables"]["CLSP_CACHE"] == str(tmp_path / "new")
    cache = found["folders"]["sets read from URLs"]
    assert cache["path"] == str(tmp_path / "new") and cache["writable"]
    pixels = found["folders"]["decoded pixels"]
    assert pixels["path"] == str(tmp_path / "new" / "pixels") and pixels["writable"]
    assert f"{tmp_path / 'new'} (sets read from URLs): writable" in words.stdout


def test_limits_of_a_cgroup_and_of_those_it_is_in_count(monkeypatch, tmp_path):
    own = (doctor.Path("/proc/self/cgroup").read_text(encoding="utf-8")).splitlines()
    inner = [line.removeprefix("0::/") for line in own if line.startswith("0::/")]
    folder = tmp_path / (inner[0] if inner else "")
    folder.mkdir(parents=True, exist_ok=True)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    if inner and inner[0]:
        (folder / "cpu.max").write_text("max 100000\n")
        (folder / "memory.max").write_text("1000000000\n")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path)

    expected = (1.5, 1_000_000_000 if inner and inner[0] else None) if inner else (None, None)
    assert (doctor._cores().cgroup, memory.read_memory().cgroup) == expected


def test_the_version_is_said(clsp):
    found = clsp("--version")
    assert (found.returncode, found.stdout) == (0, f"clsp {version('clsp')}\n")
