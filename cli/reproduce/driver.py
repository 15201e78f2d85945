"""Runs stages as processes, several at a time, within a limit of time, and remembers what is finished."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

from ...core import InputError, StopRequested, WorkError, locked, write_file
from ..main import BAD_INPUT, DONE, FAILED, STOPPED, run
from ..progress import say
from .stages import Stage

SECONDS_BETWEEN_POLLS = 0.1
OWN_FOLDERS = ("stages", "logs", "recipes")
"""What the driver itself writes."""

PROCESSES = multiprocessing.get_context("forkserver")
"""Stages are forked from a process that has imported the libraries once, which takes most commands 9 s otherwise."""
PROCESSES.set_forkserver_preload(["clsp.cli.reproduce.preload"])


@dataclass
class _Running:
    stage: Stage
    process: BaseProcess
    started: float


class Driver:
    """Runs stages; what is finished stands in `OUT/stages/`, with the seconds that it took over all slices.

    Args:
        jobs: stages that run at a time.
        seconds: after which everything is stopped at a resumable point; None: no limit.
        started: the reading of `time.monotonic` from which they count; now by default.
    """

    def __init__(
        self,
        out: Path,
        stages: Sequence[Stage],
        jobs: int,
        seconds: float | None = None,
        started: float | None = None,
    ):
        self.out = out
        self.stages = stages
        self.jobs = jobs
        self.seconds = seconds
        self.started = time.monotonic() if started is None else started
        self.finished: set[str] = set()

        # In the order of their dependencies: what follows a changed stage is done again
        for stage in stages:
            if set(stage.after) <= self.finished and self._recorded(stage).get("finished"):
                self.finished.add(stage.name)

        self.running: dict[str, _Running] = {}
        self.temporary = ""

    def run(self) -> None:
        """Run what is not finished; a failing stage ends the work, and everything finished is kept.

        Raises:
            StopRequested: the time is over.
            InputError: it was too short to get any further, or another driver works here.
        """
        with ExitStack() as held:
            # What stages leave in the temporary folder, sockets and caches of torch, goes when the work ends.
            folder = tempfile.TemporaryDirectory(prefix="clsp-", ignore_cleanup_errors=True)
            self.temporary = held.enter_context(folder)
            try:
                held.enter_context(locked(self.out / "stages" / ".driver", wait=False))
            except BlockingIOError as error:
                found = f"another clsp reproduce works in {self.out}"
                raise InputError(f"{found}; wait for it, or choose another --out") from error

            # Start what is ready, finish what has ended, stop when the time is over
            before = (0, 0) if self.seconds is None else self._reached()
            try:
                while len(self.finished) < len(self.stages):
                    self._start_ready()
                    time.sleep(SECONDS_BETWEEN_POLLS)
                    for running in list(self.running.values()):
                        if running.process.exitcode is not None:
                            self._finish(running)
                    if self.seconds is not None and time.monotonic() - self.started > self.seconds:
                        self._end_slice(before)
            finally:
                self._stop_all()

    def _start_ready(self) -> None:
        for stage in self.stages:
            ready = set(stage.after) <= self.finished
            if (
                len(self.running) < self.jobs
                and ready
                and stage.name not in self.finished | set(self.running)
            ):
                self.running[stage.name] = _Running(stage, self._start(stage), time.monotonic())

    def _start(self, stage: Stage) -> BaseProcess:
        threads = max(1, (os.cpu_count() or 1) // (1 if stage.alone else self.jobs))
        limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
        threads = min(threads, int(limit)) if limit.isdecimal() and int(limit) else threads
        log = self._log(stage)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_bytes(b"")
        process = PROCESSES.Process(
            target=run_stage, args=(stage.arguments, log, threads, self.temporary)
        )
        process.start()
        say(f"        {stage.name} begins (log: {log})")

        return process

    def _finish(self, running: _Running) -> None:
        stage = running.stage
        code = running.process.exitcode
        del self.running[stage.name]
        spent = self._record(running, finished=code == DONE)
        if code != DONE:
            raise _failure(stage, code, self._log(stage))
        self.finished.add(stage.name)
        say(f"[{len(self.finished):>2}/{len(self.stages)}] {stage.name} ({spent:.0f} s)")

    def _end_slice(self, before: tuple[int, int]) -> None:
        """Stop at a resumable point, unless the next slice of this length would get no further either."""
        names = ", ".join(self.running)
        self._stop_all()
        if self._reached() == before:
            minutes = (self.seconds or 0) / 60
            raise InputError(
                f"--max-minutes {minutes:g} is too short for one step of {names}; give more"
            )
        raise StopRequested

    def _reached(self) -> tuple[int, int]:
        """Return how many stages are finished, and when one wrote its latest file (0: none has)."""
        folders = (path for path in self.out.iterdir() if path.name not in OWN_FOLDERS)
        times = (path.stat().st_mtime_ns for folder in folders for path in folder.rglob("*"))
        return len(self.finished), max(times, default=0)

    def _stop_all(self) -> None:
        for running in self.running.values():
            running.process.terminate()
        for name, running in self.running.items():
            running.process.join()
            self._record(running, finished=running.process.exitcode == DONE)
            if running.process.exitcode == DONE:  # before the signal reached it
                self.finished.add(name)
        self.running.clear()

    def _record(self, running: _Running, finished: bool) -> float:
        """Write down a stage's state; returns its seconds over all slices."""
        stage = running.stage
        spent = self._recorded(stage).get("seconds", 0.0) + time.monotonic() - running.started
        content = {"arguments": stage.arguments, "seconds": round(spent, 1), "finished": finished}
        write_file(self._path(stage), json.dumps(content).encode())
        return spent

    def _recorded(self, stage: Stage) -> dict:
        """Return the facts that are written down about a stage with these very arguments."""
        path = self._path(stage)
        content = json.loads(path.read_text()) if path.exists() else {}
        return content if content.get("arguments") == list(stage.arguments) else {}

    def costs(self) -> dict[str, float]:
        """Return the seconds of every finished stage."""
        return {
            stage.name: self._recorded(stage)["seconds"]
            for stage in self.stages
            if stage.name in self.finished
        }

    def _path(self, stage: Stage) -> Path:
        return self.out / "stages" / f"{stage.name}.json"

    def _log(self, stage: Stage) -> Path:
        return self.out / "logs" / f"{stage.name}.log"


def run_stage(arguments: Sequence[str], log: Path, threads: int, temporary: str) -> None:
    """Run a command line in a process of its own, its output in the log; exits with its code.

    Args:
        temporary: the folder for temporary files, of this process and of those that it starts.
    """
    # Where its files and its output go
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)

    # Stop on request, until `run` has its own way
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})

    # The driver may have been stopped while this process was being made
    driver = multiprocessing.parent_process()
    if driver is None or not driver.is_alive():
        sys.exit(STOPPED)

    # Start the workers of DataLoader in the default way, not in the driver's
    multiprocessing.set_start_method(None, force=True)
    import threadpoolctl
    import torch

    # Threads, of this process and of those that it starts
    os.environ["OMP_NUM_THREADS"] = str(threads)
    torch.set_num_threads(threads)
    threadpoolctl.threadpool_limits(threads, "blas")
    sys.exit(run(list(arguments)))


def _failure(stage: Stage, code: int | None, log: Path) -> BaseException:
    """Return the error of a stage, which ends the driver with the stage's own exit code."""
    lines = log.read_text().strip().splitlines() or [""]
    if code == STOPPED:
        return StopRequested()
    if code not in (FAILED, BAD_INPUT):
        found = f"stage {stage.name} was killed (exit code {code})"
        return WorkError(f"{found}; if memory ran out, use --jobs 1 (log: {log})")
    kind = InputError if code == BAD_INPUT else WorkError
    return kind(f"stage {stage.name}: {lines[-1].removeprefix('clsp: ')} (log: {log})")
