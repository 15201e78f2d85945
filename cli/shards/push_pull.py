"""`clsp shards push` and `pull`: sealed sets to and from other places."""

from pathlib import Path

import click

from ...shards import read_manifest
from ...shards.remote.push_pull import pull as pull_set
from ...shards.remote.push_pull import push as push_set
from ..options import PATH
from ..progress import ProgressReport, say, say_unfinished

expect_option = click.option(
    "--expect", default=None, metavar="ID", help="The set ID that the set must have."
)
workers_option = click.option(
    "--workers",
    default=8,
    show_default=True,
    type=click.IntRange(1, 64),
    help="Files to copy at a time.",
)


@click.command(epilog="Example: clsp shards push runs/digits/shards s3://bucket/digits")
@click.argument("source", metavar="SET", type=PATH)
@click.argument("destination", metavar="URL")
@expect_option
@workers_option
def push(source: Path, destination: str, expect: str | None, workers: int) -> None:
    """Copy a sealed set to a URL or folder; a copy that was interrupted goes on when it is run again."""
    with ProgressReport("push", "files") as report:
        set_id = push_set(source, destination, report, workers, expect=expect)
    say_unfinished(source, read_manifest(source))
    say(f"{destination} holds the set, set ID {set_id}")


@click.command(epilog="Example: clsp shards pull s3://bucket/digits runs/digits/shards")
@click.argument("source", metavar="URL")
@click.argument("destination", metavar="SET", type=PATH)
@expect_option
@workers_option
def pull(source: str, destination: Path, expect: str | None, workers: int) -> None:
    """Copy a sealed set from a URL or folder; a copy that was interrupted goes on when it is run again."""
    with ProgressReport("pull", "files") as report:
        set_id = pull_set(source, destination, expect, report, workers)
    say(f"{destination} holds the set, set ID {set_id}")
