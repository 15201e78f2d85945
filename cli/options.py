"""Options that several commands share, and the checks that go with them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError

if TYPE_CHECKING:
    from .recipe import (
        Recipe,
    )  # reading a recipe imports every package; a command on a set needs none of them

PATH = click.Path(path_type=Path)


set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override any key of the recipe."
)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--recipe` and `--set`; the command takes them as `recipe_name` and `overrides`."""
    for option in (
        set_option,
        click.option(
            "--recipe",
            "recipe_name",
            required=True,
            metavar="NAME|FILE",
            help="Name of a shipped recipe, or path of a recipe file.",
        ),
    ):
        command = option(command)

    return command


def out_option(help_text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add `--out`."""
    return click.option("--out", required=True, type=PATH, help=help_text)


def set_argument(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the positional argument SET."""
    return click.argument("root", metavar="SET", type=PATH)(command)


check_option = click.option(
    "--check", is_flag=True, help="Check the input and stop before any work."
)


def parse_part(text: str) -> tuple[int, int]:
    """Read `i/n` as (i, n), 0 ≤ i < n.

    Raises:
        InputError: anything else.
    """
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and int(number) < int(parts)):
        raise InputError(f"--part {text}: expected i/n with 0 <= i < n, for example 0/4 … 3/4")
    return int(number), int(parts)


def expand(path: Path, recipe: "Recipe") -> Path:
    """Fill `{name}` (`simclr+shards`, …) and `{seed}` of the recipe's run into a path."""
    text = str(path)
    return Path(
        text.replace("{name}", recipe.pretrain.run_name).replace(
            "{seed}", str(recipe.pretrain.seed)
        )
    )
