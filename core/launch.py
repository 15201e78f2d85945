"""Find out how this process was launched, and join the others. Imports torch when it does, not before."""

import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from .errors import InputError, WorkError

if TYPE_CHECKING:
    from accelerate import Accelerator, PartialState
    from torch.distributed import Store

GROUP = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
"""What a launcher sets: this process's number, how many there are, and its number on its machine."""

MPI = (
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
"""What accelerate reads besides, on CPUs alone."""

ADDRESS, PORT, DEFAULT_PORT = "MASTER_ADDR", "MASTER_PORT", "29500"
USE_CPU = "ACCELERATE_USE_CPU"

ENGINES = (
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_USE_FSDP",
    "ACCELERATE_USE_MEGATRON_LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG",
)
"""Ways to share a model out among processes that clsp does not have."""

START = timedelta(minutes=30)
"""How long the processes of a launch wait for the last of them to start."""

NOTICE = timedelta(seconds=30)
"""After that a process says whom it is waiting for."""

WORK = timedelta(hours=12)
"""How long they wait for each other later: the first one reads a source, draws images or probes."""

SECONDS_BETWEEN_POLLS = 0.2

Found = TypeVar("Found")

log = logging.getLogger(__name__)


class LaunchError(InputError):
    """Reports an environment that does not say how the process was launched, or says what is not so.

    >>> os.environ["RANK"] = "first"
    >>> try:
    ...     read_launch()
    ... except LaunchError as error:
    ...     print(str(error).split(";")[0])
    ... finally:
    ...     del os.environ["RANK"]
    RANK=first in the environment is no number
    """


@dataclass(frozen=True)
class Launch:
    """Holds a process's place among those launched together, and the variables that say so."""

    rank: int
    world_size: int
    variables: tuple[str, ...]

    def fault(self, found: str) -> LaunchError:
        """Return the error of this launch: what was found, and what to do."""
        values = " ".join(f"{name}={os.environ[name]}" for name in self.variables)
        names = " ".join(self.variables)
        return LaunchError(
            f"{values} in the environment: {found}; unset {names} for a single process, "
            "or launch several by accelerate launch or torchrun"
        )


def read_launch() -> Launch | None:
    """Return this process's place in its launch, None for a process alone.

    Raises:
        LaunchError: the variables are no numbers, incomplete, or contradict each other.
    """
    on_cpu = os.environ.get(USE_CPU, "").lower() in ("y", "yes", "t", "true", "on", "1")
    for names in (GROUP, *(MPI if on_cpu else ())):
        launch = _read_launch(names)
        if launch:
            return launch
    return None


def _read_launch(names: tuple[str, ...]) -> Launch | None:
    numbers = {}
    for name in names:
        number = _number(name)
        if number is not None:
            numbers[name] = number

    # A process alone may be told so; only a launcher numbers the processes of a machine.
    rank = numbers.get(names[0], 0)
    world_size = numbers.get(names[1], 1)
    if rank == 0 and world_size == 1 and not numbers.keys() & set(names[2:]):
        return None

    needed = [*names, ADDRESS, PORT] if names == GROUP else [*names, ADDRESS]
    missing = [name for name in names if name not in numbers]
    missing += [name for name in needed if name not in names and not os.environ.get(name)]
    launch = Launch(rank, world_size, tuple(numbers))
    if missing:
        raise launch.fault(f"{' '.join(missing)} missing")
    if rank >= world_size:
        raise launch.fault(f"{names[0]} must be below {names[1]}")

    return launch


def _number(name: str) -> int | None:
    """Return a variable's number, None where it is not set; launchers write -1 for that, too."""
    value = os.environ.get(name)
    if value is None:
        return None

    try:
        number = int(value)
    except ValueError as error:
        raise LaunchError(
            f"{name}={value} in the environment is no number; unset it for a single process, "
            "or launch several by accelerate launch or torchrun"
        ) from error

    return number if number >= 0 else None


def launched_rank() -> int:
    """Return this process's number, 0 without a launch that can be understood."""
    try:
        launch = read_launch()
    except LaunchError:
        return 0
    return launch.rank if launch else 0


def join_launch() -> "PartialState":
    """Join the processes of this launch, and return accelerate's state: ranks, device, barriers.

    Raises:
        LaunchError: the environment does not describe a launch, or the others do not come.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    launch = read_launch()
    try:
        on_cpu = parse_flag_from_env(USE_CPU)
    except ValueError as error:
        found = f"{USE_CPU}={os.environ[USE_CPU]}"
        raise LaunchError(f"{found} in the environment; expected true or false") from error

    known = torch.distributed.is_available() and torch.distributed.is_initialized()
    if launch is None or known or PartialState._shared_state:
        return PartialState(cpu=on_cpu)

    # Without an accelerator, accelerate would take the processes of a launch for single ones.
    on_cpu = on_cpu or not torch.accelerator.is_available()
    os.environ.setdefault(PORT, DEFAULT_PORT)
    place: Any = {"store": _meet(launch), "rank": launch.rank, "world_size": launch.world_size}
    return PartialState(cpu=on_cpu, timeout=WORK, **place)


def _meet(launch: Launch) -> "Store":
    """Return the store in which all processes of a launch have met."""
    # A thread waits, for torch's own waiting hears no signal.
    meeting: Future[Store] = Future()
    Thread(target=_wait_for_all, args=(launch, meeting), daemon=True).start()

    where = f"{os.environ[ADDRESS]}:{os.environ[PORT]}"
    if not wait([meeting], NOTICE.total_seconds()).done:
        log.warning(
            "clsp: process %d of %d waits for the others at %s (%s are set), %d minutes at most",
            launch.rank,
            launch.world_size,
            where,
            " ".join(launch.variables),
            START.total_seconds() // 60,
        )

    wait([meeting])
    error = meeting.exception()
    if error is None:
        return meeting.result()

    reason = str(error).splitlines()[0].rstrip(".")
    raise launch.fault(f"the other processes were not found at {where} ({reason})") from error


def _wait_for_all(launch: Launch, meeting: "Future[Store]") -> None:
    from torch.distributed import PrefixStore, rendezvous

    deadline = time.monotonic() + START.total_seconds()
    try:
        found = rendezvous("env://", launch.rank, launch.world_size, timeout=START)
        store = PrefixStore("clsp", next(iter(found))[0])

        # Only the first process's store waits for all of them.
        store.add("arrived", 1)
        while store.add("arrived", 0) < launch.world_size:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{store.add('arrived', 0)} of {launch.world_size} came")
            time.sleep(0.1)

        store.set_timeout(WORK)
        meeting.set_result(store)
    except Exception as error:
        meeting.set_exception(error)


def make_accelerator(precision: str, **options: Any) -> "Accelerator":
    """Join the processes of this launch, and make their accelerator.

    Settings come from the recipe alone: what the environment asks for besides is refused or, with a line, ignored.

    Args:
        precision: `no` or `bf16`.
        options: further arguments of `accelerate.Accelerator`.

    Raises:
        LaunchError: as `join_launch`; or the environment asks for a way to train that clsp does not have.
    """
    _check_engines()
    join_launch()
    from accelerate import Accelerator
    from accelerate.utils import GradientAccumulationPlugin

    others = _other_settings(precision)
    if others and launched_rank() == 0:
        found = " ".join(others)
        log.warning("clsp: ignored in the environment: %s; settings come from the recipe", found)

    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        **options,
    )


def on_any_rank(accelerator: "Accelerator", here: bool) -> bool:
    """Return True on every rank if it is True on any."""
    if accelerator.num_processes == 1:
        return here

    import torch

    total: Any = accelerator.reduce(torch.tensor(float(here), device=accelerator.device))
    return bool(total)


def wait_for(find: Callable[[], Found | None], what: str) -> Found:
    """Return what another process makes, when it is there.

    It looks for files or the like, so that no collective is pending while the other one works.

    Args:
        find: returns it, and something false as long as it is not there.
        what: is waited for, in the plural: `latents`.

    Raises:
        WorkError: it did not come for as long as processes wait for each other, so the other one must have failed.
    """
    until = time.monotonic() + WORK.total_seconds()
    while not (found := find()):
        if time.monotonic() > until:
            raise WorkError(
                f"waited {WORK} for {what} that another process was to make; look at its output, "
                "and start all of them again"
            )
        time.sleep(SECONDS_BETWEEN_POLLS)

    return found


def _check_engines() -> None:
    asked = [name for name in ENGINES if os.environ.get(name, "").lower() == "true"]
    if asked:
        raise LaunchError(
            f"{' '.join(asked)} in the environment: clsp trains every process on a whole model; "
            "launch it without (accelerate launch --multi_gpu)"
        )


def _other_settings(precision: str) -> list[str]:
    """Return the settings of accelerate in the environment that are not the recipe's; `no` is also its default."""
    accepted = {
        "ACCELERATE_MIXED_PRECISION": ("no", precision),
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1",),
        "ACCELERATE_DYNAMO_BACKEND": ("no",),
    }
    others = []
    for name, values in accepted.items():
        value = os.environ.get(name)
        if value is not None and value.lower() not in values:
            others.append(f"{name}={value}")
    return others
