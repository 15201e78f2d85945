"""Options that several commands share, and the checks that go with them."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..core import InputError, local_path

if TYPE_CHECKING:
    from .recipe import (
        Recipe,
    )  # reading a recipe imports every package; a command on a set needs none of them


class LocalPath(click.Path):
    """A path on this machine, also one with `~` or as a file URL; other URLs are refused."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        path = local_path(str(value))
        if "://" in path:
            raise InputError(
                f"{value}: expected a path on this machine; clsp shards pull fetches a set, push sends one"
            )
        if Path(path).absolute() == Path(path).absolute().parent:
            raise InputError(f"{value}: the root of the file system; expected something below it")
        return super().convert(path, param, ctx)


PATH = LocalPath(path_type=Path)

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
            metavar="NAME|FILE[:PROFILE]",
            help="Name of a shipped recipe, or path of a recipe file; with :PROFILE one of its profiles.",
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


encoder_option = click.option(
    "--encoder",
    "encoder_name",
    required=True,
    metavar="DIR|TIMM-NAME|unet:DIR",
    help="A run, any timm model, or unet:DIR[@BLOCK:TIMESTEP], the features of a diffusion model.",
)


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
