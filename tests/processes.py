"""Processes that are ready at once: forked from one that has imported the libraries, which takes seconds each time.

What a launcher or a shell does is tested with real ones; these stand for them where only the work itself counts.
"""

import multiprocessing
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from clsp.cli.main import run
from clsp.cli.reproduce.driver import PROCESSES


class Running:
    """A process that runs a function: what it prints is in files, and its exit code is a command's."""

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: Any,
        environment: Mapping[str, str] | None = None,
    ):
        self._folder = Path(tempfile.mkdtemp(prefix="process-"))
        job = (function, arguments, dict(environment or os.environ), self._folder)
        self.process = PROCESSES.Process(target=_work, args=job)
        self.process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, negative after a signal; None while the process works."""
        return self.process.exitcode

    def send_signal(self, signum: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.returncode is None:
            os.kill(self.pid, signum)

    def wait(self) -> int | None:
        """Wait for the end; returns the exit code."""
        self.process.join()
        return self.returncode

    @property
    def stdout(self) -> str:
        """Return what it printed so far."""
        return (self._folder / "stdout").read_text()

    @property
    def stderr(self) -> str:
        """Return what it said on standard error so far."""
        return (self._folder / "stderr").read_text()


def start_clsp(*arguments: object, environment: Mapping[str, str] | None = None) -> Running:
    """Start a command line of clsp."""
    return Running(run, [str(argument) for argument in arguments], environment=environment)


def run_clsp(*arguments: object) -> Running:
    """Run a command line of clsp to its end, which must be a good one."""
    running = start_clsp(*arguments)
    assert running.wait() == 0, running.stderr
    return running


def start_ranks(
    processes: int, function: Callable[..., object], *arguments: Any, threads: int = 1
) -> list[Running]:
    """Start a function as so many processes of one group, on CPUs, with the environment that a launcher gives."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(threads)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    common |= {"LOCAL_WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    return [Running(function, *arguments, environment=common | rank) for rank in ranks]


def run_ranks(
    processes: int, function: Callable[..., object], *arguments: Any, threads: int = 1
) -> list[Running]:
    """Run a function as so many processes to their end, which must be a good one."""
    running = start_ranks(processes, function, *arguments, threads=threads)
    for one in running:
        assert one.wait() == 0, one.stderr
    return running


def _work(
    function: Callable[..., object], arguments: tuple, environment: dict[str, str], folder: Path
) -> None:
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        with (folder / name).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    signal.pthread_sigmask(
        signal.SIG_UNBLOCK, {signal.SIGTERM}
    )  # blocked in the process that is forked
    multiprocessing.set_start_method(None, force=True)  # for DataLoader workers: the default
    import torch

    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", "1")))
    code = function(*arguments)
    sys.stdout.flush()
    sys.exit(code if isinstance(code, int) else 0)
