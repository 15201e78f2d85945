"""The command's entry: the table of commands, loaded only when used, and the exit codes."""

import os
import signal
import sys
import threading
import time
from importlib import import_module
from typing import Any, NoReturn

import click

from ..core import DISK_FULL, InputError, LaunchError, StopRequested, WorkError, launched_rank
from .caches import prepare_caches
from .streams import READER_GONE, drop_output, prepare_streams, reader_is_gone

DONE, FAILED, BAD_INPUT, STOPPED = 0, 1, 2, 75

COMMANDS: dict[str, Any] = {
    "autoencoder": {
        "": "Train the autoencoder of a latent diffusion model.",
        "train": (".autoencoder:train", "Train an autoencoder on the anchors alone."),
    },
    "diffusion": {
        "": "Train the diffusion model that makes the positives.",
        "train": (
            ".diffusion:train",
            "Train a DDPM on the anchors: unconditional, or with pseudo-classes.",
        ),
    },
    "shards": {
        "": "Make shard sets, look at them, check them, change and copy them.",
        "plan": (
            ".shards.plan_make:plan",
            "Estimate what a set costs: shards, images, bytes, hours.",
        ),
        "make": (".shards.plan_make:make", "Make a shard set of anchors and synthetic positives."),
        "status": (
            ".shards.status_info_preview_verify:status",
            "Show how much of a set is made, and how fast.",
        ),
        "info": (
            ".shards.status_info_preview_verify:info",
            "Describe a set: ID, source, model, sampler.",
        ),
        "preview": (
            ".shards.status_info_preview_verify:preview",
            "Draw a contact sheet: anchors beside their candidates.",
        ),
        "verify": (".shards.status_info_preview_verify:verify", "Check a set against its seal."),
        "repair": (".shards.extend_repair:repair", "Restore damaged files."),
        "extend": (".shards.extend_repair:extend", "Add candidates to a sealed set."),
        "merge": (".shards.subset_merge_pack:merge", "Merge two sets into one."),
        "subset": (".shards.subset_merge_pack:subset", "Make a new set with some of the anchors."),
        "push": (".shards.push_pull:push", "Copy a sealed set to a URL or folder."),
        "pull": (".shards.push_pull:pull", "Copy a sealed set from a URL or folder."),
        "import-npy": (
            ".shards.import_export:import_npy",
            "Import candidates made elsewhere as a shard set.",
        ),
        "export": (
            ".shards.import_export:export",
            "Write a set as one array or as a folder of images.",
        ),
        "score": (".shards.score:score", "Measure every candidate of a set."),
        "compare": (
            ".shards.compare:compare",
            "Tell whether a set's candidates are as good as another's.",
        ),
        "pack": (".shards.subset_merge_pack:pack", "Make a new set with all layers in one."),
    },
    "images": (
        ".images:images",
        "Look at a source of images: splits, classes, sizes, formats, and what is left out.",
    ),
    "pretrain": (".pretrain:pretrain", "Pretrain a backbone on a shard set."),
    "linear-eval": (
        ".probes:linear_eval",
        "Evaluate a pretrained backbone with a linear classifier.",
    ),
    "knn": (".probes:knn", "Evaluate a pretrained backbone by its nearest neighbours."),
    "transfer": (".probes:transfer", "Evaluate a pretrained backbone on other data sets."),
    "embed": (".embed:embed", "Write the features of any images, by any encoder."),
    "compare": (".report:compare", "Compare runs: mean ± std over seeds per run name."),
    "report": (".report:report", "Write one self-contained HTML page of a comparison."),
    "reproduce": (
        ".reproduce.command:reproduce",
        "Run the whole pipeline of a recipe, from images to table.",
    ),
    "doctor": (".doctor:doctor", "Say what clsp finds on this machine."),
}


class _PipeError(Exception):
    """A broken pipe, whichever it was; as it is click would end the command on it without a word."""


class LazyGroup(click.Group):
    """Imports its commands when they are called, so that `--help` imports nothing heavy."""

    def __init__(self, table: dict[str, Any], **options: Any):
        super().__init__(help=table.get("", ""), **options)
        self.table = {name: entry for name, entry in table.items() if name}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every command's name, in the table's order."""
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command."""
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        if isinstance(entry, dict):
            return LazyGroup(entry, name=cmd_name)
        module, attribute = entry[0].split(":")
        return getattr(import_module(module, __package__), attribute)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise _PipeError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, from the table alone."""
        rows = [
            (name, entry[""] if isinstance(entry, dict) else entry[1])
            for name, entry in self.table.items()
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


root = LazyGroup(
    {
        "": "Contrastive learning with synthetic positives: shard sets, pretraining, evaluation.",
        **COMMANDS,
    },
    name="clsp",
    epilog="Example: clsp shards make --recipe cifar10 --out runs/cifar10/shards",
)
click.version_option(package_name="clsp", message="clsp %(version)s")(root)


def main() -> NoReturn:
    """Run the command line and exit: 0 done, 1 failed, 2 bad input, 75 stopped at a resumable point.

    141 if the reader of its output has gone, as in `clsp shards info SET | head -1`.
    """
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code; every foreseen error becomes one line on standard error.

    Commands find the moment of their beginning, before their imports, in click's `obj`.
    """
    prepare_streams()
    prepare_caches()
    previous = signal.signal(signal.SIGTERM, _request_stop)
    threading.excepthook = _thread_failed
    try:
        _check_text(arguments)
        result = root.main(arguments, prog_name="clsp", standalone_mode=False, obj=time.monotonic())
        sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        return BAD_INPUT
    except (BrokenPipeError, _PipeError, SystemExit) as error:
        if reader_is_gone():
            drop_output()
            return READER_GONE
        raise error.__cause__ or error from None
    except (Exception, KeyboardInterrupt, StopRequested) as error:
        foreseen = _foreseen(error)
        if foreseen is None:
            raise
        message, code = foreseen
        if _is_first_to_know(error, code):
            _say(message, code)
        return code
    finally:
        signal.signal(signal.SIGTERM, previous)
        threading.excepthook = threading.__excepthook__
        _leave_process_group()


def _check_text(arguments: list[str]) -> None:
    """Raise InputError for an argument that this locale cannot read: it could be neither said nor written down."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            raise InputError(
                f"{argument}: no text in this locale's encoding ({encoding}); "
                "set LC_ALL=C.UTF-8, or use another name"
            ) from None


def _foreseen(error: BaseException) -> tuple[str, int] | None:
    """Return the line to say and the exit code of an error that users can meet; None for a bug."""
    match error:
        # Our own, and click's
        case click.ClickException():
            return error.format_message(), BAD_INPUT
        case InputError():
            return str(error), BAD_INPUT
        case WorkError():
            return str(error), FAILED
        case StopRequested() | click.Abort() | KeyboardInterrupt():
            return (
                "stopped; what is finished is kept, run the same command again to go on (resumable)",
                STOPPED,
            )

        # The machine's
        case NotADirectoryError() | FileExistsError() | IsADirectoryError() | PermissionError():
            return f"{error.filename}: {error.strerror}; give another path", BAD_INPUT
        case OSError(errno=number) if number in DISK_FULL:
            return (
                f"cannot write {error.filename or 'to the disk'}: {error.strerror}; "
                "make room and run the same command again",
                FAILED,
            )
        case ModuleNotFoundError(name=str() as name) if not name.startswith("clsp"):
            return (
                f"this command needs {name}; install everything with: pip install 'clsp[all]'",
                BAD_INPUT,
            )

    return None


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Leave it to the main thread to say what users can meet: TensorBoard's writer hands its errors over to it."""
    if failure.exc_value is None or _foreseen(failure.exc_value) is None:
        threading.__excepthook__(failure)


def _request_stop(signum: int, frame: object) -> None:
    raise StopRequested


def _is_first_to_know(error: BaseException, code: int) -> bool:
    """Return False for bad input that every process of a launcher finds, in all of them but the first."""
    if code != BAD_INPUT or isinstance(error, LaunchError) or _in_process_group():
        return True
    return launched_rank() == 0 or "TORCHELASTIC_RUN_ID" not in os.environ


def _say(message: str, code: int) -> None:
    """Write one line on standard error."""
    who = ""
    if code != STOPPED and _in_process_group():
        distributed = sys.modules["torch"].distributed
        who = f"process {distributed.get_rank()} of {distributed.get_world_size()}: "
    sys.stderr.write(f"clsp: {who}{' '.join(message.split())}\n")


def _in_process_group() -> bool:
    torch = sys.modules.get("torch")
    return bool(torch and torch.distributed.is_available() and torch.distributed.is_initialized())


def _leave_process_group() -> None:
    """Leave the process group: a gloo process that ends inside of it may abort at exit."""
    if _in_process_group():
        sys.modules["torch"].distributed.destroy_process_group()
