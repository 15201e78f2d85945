"""Show results: `clsp compare` and `clsp report`."""

from pathlib import Path

import click

from ..core import InputError
from .options import PATH, out_option
from .progress import say


@click.command(epilog="Example: clsp compare runs/digits/pretrain/* --out runs/digits")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=PATH)
@out_option("Folder for results.json, results.md, results.csv and curves.png.")
@click.option(
    "--baseline",
    metavar="NAME",
    help="Run name to take differences to; default: the first without a +.",
)
def compare(folders: tuple[Path, ...], out: Path, baseline: str | None) -> None:
    """Compare runs: mean ± std over seeds per run name, paired differences, published figures."""
    from ..core import write_file
    from ..evaluate import (
        DIFFERENCES,
        compare_runs,
        difference_rows,
        footnotes,
        table_rows,
        training_curves,
        write_comparison,
    )

    # The files
    comparison = compare_runs(folders, baseline, out)
    write_comparison(comparison, out)
    write_file(out / "curves.png", training_curves(folders, "png"))

    # The tables
    _print_table("accuracy in percent, mean ± std over seeds", *table_rows(comparison))

    if comparison.differences:
        _print_table("differences in points, paired by seed", *difference_rows(comparison))
        say(f"{DIFFERENCES}.")

    for note in footnotes(comparison):
        say(note)

    names = ("results.json", "results.md", "results.csv", "curves.png")
    written = [str(out / name) for name in names]
    say(f"written: {', '.join(written)}")


def _print_table(caption: str, headings: list[str], rows: list[list[str]]) -> None:
    """Print a table as wide as it needs to be."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=caption)

    for heading in headings:
        table.add_column(heading, no_wrap=True)

    for row in rows:
        cells = [Text(cell) for cell in row]  # as they are: [1] would be markup
        table.add_row(*cells)

    width = Console(width=1000).measure(table).maximum
    Console(width=width).print(table)  # never cut a name short, also in a log or a narrow window


@click.command(epilog="Example: clsp report runs/digits --out runs/digits/report.html")
@click.argument("folder", metavar="DIR", type=PATH)
@out_option("The page to write.")
@click.option("--shards", type=PATH, help="The set to show; default: the one beside the runs.")
def report(folder: Path, out: Path, shards: Path | None) -> None:
    """Write one self-contained HTML page of a comparison or of a single run."""
    from ..evaluate import write_report

    if out.is_dir():
        raise InputError(
            f"--out {out} is a folder; give the file to write, for example {out / 'report.html'}"
        )
    write_report(folder, out, shards)
    say(f"report: {out}")
