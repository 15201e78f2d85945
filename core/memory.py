"""Say how much memory there is: by the machine, and by the control groups that the process is in."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Memory:
    """Memory in bytes: what the machine has, what is free of it, and what the control group allows.

    >>> Memory(machine=8 << 30, available=6 << 30, cgroup=None).cgroup is None
    True
    """

    machine: int | None
    available: int | None
    cgroup: int | None


def read_memory() -> Memory:
    """Return what /proc and the cgroup say; machines without them say nothing."""
    facts = {}
    if Path("/proc/meminfo").exists():
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            name, _, kilobytes = line.partition(":")
            facts[name] = 1024 * int(kilobytes.split()[0])

    limits = [int(content) for content in cgroup_files("memory.max") if content != "max"]
    return Memory(facts.get("MemTotal"), facts.get("MemAvailable"), min(limits, default=None))


def available_memory() -> int | None:
    """Return the bytes that are free, at most the control group's; None where the machine does not say."""
    memory = read_memory()
    known = [count for count in (memory.available, memory.cgroup) if count is not None]
    return min(known, default=None)


def cgroup_files(name: str) -> Iterator[str]:
    """Yield the content of a file of this process's cgroup (version 2) and of all that it is in."""
    own = Path("/proc/self/cgroup")
    lines = own.read_text(encoding="utf-8").splitlines() if own.exists() else []
    for line in lines:
        if line.startswith("0::"):
            folder = CGROUPS / line.removeprefix("0::").lstrip("/")
            for place in (folder, *folder.parents):
                path = place / name
                if place.is_relative_to(CGROUPS) and path.exists():
                    yield path.read_text(encoding="ascii").strip()
