"""Programs that join a launch, for processes of their own."""

import logging
import time
from datetime import timedelta

import torch
from clsp.cli.main import run
from clsp.core import InputError, launch


def join_others(late: float = 0.0, patience: float = 60.0) -> None:
    """Join a launch after so many seconds, print its size, and wait for all; the others are waited for so long."""
    launch.START = timedelta(seconds=patience)
    launch.NOTICE = timedelta(seconds=0.5)
    logging.basicConfig(format="%(message)s")
    time.sleep(late)
    try:
        state = launch.join_launch()
    except InputError as error:
        print(error, flush=True)
        raise SystemExit(2) from None

    print(f"{state.process_index} of {state.num_processes}", flush=True)
    state.wait_for_everyone()
    torch.distributed.destroy_process_group()


def run_and_say(arguments: list[str]) -> int:
    """Run a command line that soon says whom it waits for."""
    launch.NOTICE = timedelta(seconds=0.5)
    logging.basicConfig(format="%(message)s")
    return run(arguments)
