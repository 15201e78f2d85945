"""`clsp compare` and `clsp report`."""

from pathlib import Path

import click

from ..shards import InputError
from .options import PATH, out_option
from .progress import say


@click.command(epilog="Example: clsp compare runs/digits/pretrain/* --out runs/digits")
@click.argument("folders", metavar="DIR...", nargs=-1, required=True, type=PATH)
@out_option("Folder for results.json, results.md and curves.png.")
def compare(folders: tuple[Path, ...], out: Path) -> None:
    """Runs to a table: mean ± std over seeds per run name."""
    from rich.console import Console
    from rich.table import Table

    from ..evaluate import compare_runs, loss_curves, table_rows, write_comparison
    from ..shards import write_file

    comparison = compare_runs(folders)
    write_comparison(comparison, out)
    write_file(out / "curves.png", loss_curves(folders, "png"))
    headings, rows = table_rows(comparison)
    table = Table(caption="accuracy in percent, mean ± std over seeds")
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    width = Console(width=1000).measure(table).maximum
    Console(width=width).print(table)  # never cut a name short, also in a log or a narrow window
    say(f"written: {out / 'results.json'}, {out / 'results.md'}, {out / 'curves.png'}")


@click.command(epilog="Example: clsp report runs/digits --out runs/digits/report.html")
@click.argument("folder", metavar="DIR", type=PATH)
@out_option("The page to write.")
def report(folder: Path, out: Path) -> None:
    """One self-contained HTML page of a comparison."""
    from ..evaluate import write_report

    if out.is_dir():
        raise InputError(f"--out {out} is a folder; give the file to write, for example {out / 'report.html'}")
    write_report(folder, out)
    say(f"report: {out}")
