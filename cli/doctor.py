"""`clsp doctor`: what a bug report should say of the machine; works without torch."""

import json
import locale
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path

import click

from ..core import computes_bf16
from ..core.memory import Memory, cgroup_files, read_memory
from .caches import existing_part, is_writable

VARIABLES = (
    "CLSP_BF16",
    "CLSP_CACHE",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "OMP_NUM_THREADS",
    "PYTHONUTF8",
    "TMPDIR",
    "XDG_CACHE_HOME",
)
"""What changes how clsp works; none of them holds a secret."""


@dataclass(frozen=True)
class Device:
    """A device to compute on; memory in bytes."""

    name: str
    memory: int | None
    bf16: bool
    """bfloat16 is computed, not emulated."""


@dataclass(frozen=True)
class Cores:
    """Processor cores: of the machine, of those the ones this process may run on, and the share a cgroup allows."""

    machine: int
    scheduler: int
    cgroup: float | None


@dataclass(frozen=True)
class Folder:
    """A folder that is written to; `free` in bytes."""

    path: str
    writable: bool
    free: int | None


@dataclass(frozen=True)
class Diagnosis:
    """All that there is to say."""

    versions: dict[str, str | None]
    """By package; None where it is not installed."""
    platform: str
    python: str
    devices: list[Device]
    cuda: str | None
    """The version that torch was built with."""
    cores: Cores
    memory: Memory
    encodings: dict[str, str | None]
    variables: dict[str, str]
    folders: dict[str, Folder]


@click.command(epilog="Example: clsp doctor --json")
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs and bug reports.")
def doctor(as_json: bool) -> None:
    """Say what clsp finds on this machine: versions, devices, cores, memory, locale, cache folders."""
    found = diagnose()
    if as_json:
        print(json.dumps(asdict(found), indent=2))
        return

    for name, value in _rows(found):
        print(f"{name:<12} {value}")


def diagnose() -> Diagnosis:
    """Look at this machine."""
    devices, cuda = _devices()
    variables = {}
    for name in VARIABLES:
        if name in os.environ:
            variables[name] = os.environ[name]

    return Diagnosis(
        versions=_versions(),
        platform=platform.platform(),
        python=f"{platform.python_version()} ({sys.executable})",
        devices=devices,
        cuda=cuda,
        cores=_cores(),
        memory=read_memory(),
        encodings={
            "locale": locale.setlocale(locale.LC_CTYPE),
            "files' names": sys.getfilesystemencoding(),
            "output": sys.stdout.encoding,
        },
        variables=variables,
        folders=_folders(),
    )


def _versions() -> dict[str, str | None]:
    """Return the versions of clsp and of every library that it or its extra `all` asks for."""
    names = ["clsp"]
    for line in requires("clsp") or []:
        requirement, _, condition = line.partition(";")
        if not condition or "all" in condition:
            names.append(requirement.split("<")[0].split(">")[0].split("=")[0].strip())

    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None

    return found


def _devices() -> tuple[list[Device], str | None]:
    if not find_spec("torch"):
        return [], None

    import torch

    devices = []
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(number)
            devices.append(Device(properties.name, properties.total_memory, computes_bf16()))
    else:
        devices.append(Device(f"CPU {platform.machine()}", None, computes_bf16()))

    return devices, torch.version.cuda


def _cores() -> Cores:
    machine = os.cpu_count() or 1
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else machine

    shares = []
    for content in cgroup_files("cpu.max"):
        quota, _, period = content.partition(" ")
        if quota != "max":
            shares.append(int(quota) / int(period))

    return Cores(machine, allowed, min(shares, default=None))


def _folders() -> dict[str, Folder]:
    """Return where clsp and the libraries keep what they can fetch or make again."""
    from huggingface_hub.constants import HF_HOME, HF_HUB_CACHE

    from ..shards.remote.cache import PIXELS, cache_folder

    home = Path.home()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    datasets = os.environ.get("HF_DATASETS_CACHE") or Path(HF_HOME) / "datasets"
    torch_hub = os.environ.get("TORCH_HOME") or cache / "torch"
    places = {
        "home": home,
        "sets read from URLs": cache_folder(),
        "decoded pixels": cache_folder() / PIXELS,
        "models of the hub": HF_HUB_CACHE,
        "data sets of the hub": datasets,
        "torch": torch_hub,
        "temporary": tempfile.gettempdir(),
        "working": Path.cwd(),
    }

    folders = {}
    for name, place in places.items():
        try:
            free = shutil.disk_usage(existing_part(Path(place))).free
        except OSError:
            free = None
        folders[name] = Folder(str(place), is_writable(Path(place)), free)

    return folders


def _rows(found: Diagnosis) -> Iterator[tuple[str, str]]:
    """Yield what to print, as (name, value)."""
    yield "clsp", found.versions["clsp"] or "not installed"
    yield "Python", found.python
    yield "platform", found.platform
    for name, number in found.versions.items():
        if name != "clsp":
            yield name, number or "not installed"

    for device in found.devices:
        memory = f", {_gigabytes(device.memory)}" if device.memory else ""
        bf16 = "computes" if device.bf16 else "emulates"
        yield "device", f"{device.name}{memory}, {bf16} bfloat16"
    if not found.devices:
        yield "device", "none: torch is not installed (pip install 'clsp[all]')"
    if found.cuda:
        yield "CUDA", found.cuda

    cores = found.cores
    share = "" if cores.cgroup is None else f", {cores.cgroup:g} by the cgroup"
    yield "cores", f"{cores.machine}, {cores.scheduler} for this process{share}"

    memory = found.memory
    limit = "" if memory.cgroup is None else f", {_gigabytes(memory.cgroup)} by the cgroup"
    yield "memory", f"{_gigabytes(memory.machine)}, {_gigabytes(memory.available)} free{limit}"

    yield "encodings", ", ".join(f"{name} {value}" for name, value in found.encodings.items())
    yield (
        "variables",
        ", ".join(f"{name}={value}" for name, value in found.variables.items()) or "none set",
    )
    for name, folder in found.folders.items():
        writable = "writable" if folder.writable else "NOT writable"
        yield "folder", f"{folder.path} ({name}): {writable}, {_gigabytes(folder.free)} free"


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.3g} GB"
