"""`clsp images`: what a source holds, how it was understood, and what of it is left out."""

from collections import Counter
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..core import InputError
from ..shards import AnchorsConfig, ImageSource
from ..shards.reading.contact_sheet import image_sheet
from ..shards.sources.enlarging import enlarging_note, why_enlarged
from ..shards.sources.folder import FolderSource
from ..shards.sources.left_out import write_left_out
from ..shards.sources.survey import Findings
from ..shards.sources.walk import reasons_of
from .options import PATH, set_option
from .progress import ProgressReport, open_anchors, say

SHEET_SIZE = 64
"""Pixels of the images that a contact sheet shows, where nobody says a size."""

SHOWN = 8
"""Classes, sizes or files that a line names."""


@click.command(epilog="Example: clsp images ~/photos --sheet photos.png")
@click.argument("source", metavar="SOURCE")
@click.option(
    "--recipe",
    "recipe_name",
    default=None,
    metavar="NAME|FILE",
    help="Recipe whose [anchors] says the rest; default: no recipe, all split train.",
)
@set_option
@click.option("--decode", is_flag=True, help="Also decode every image, to find those that do not.")
@click.option("--sheet", type=PATH, help="Draw a contact sheet of some images to this PNG file.")
@click.option("--left-out", type=PATH, help="List the files that are not taken in this JSON file.")
def images(
    source: str,
    recipe_name: str | None,
    overrides: tuple[str, ...],
    decode: bool,
    sheet: Path | None,
    left_out: Path | None,
) -> int:
    """Look at a source of images: splits, classes, sizes, formats, and what is left out.

    Run it first: it makes nothing, and says how your images will be understood. Exit code 1 if an image is damaged.
    """
    if sheet and sheet.suffix != ".png":
        raise InputError(f"--sheet {sheet}: expected a name that ends in .png")

    # Open the source, in every case with what is left out.
    config = _anchors(source, recipe_name, overrides)
    shown_at = config.size or SHEET_SIZE
    anchors = open_anchors(config.model_copy(update={"on_error": "skip", "size": shown_at}))
    for line in summary_of(anchors):
        say(line)

    # Look at its images.
    with ProgressReport("looking at the images", "images") as report:
        findings = anchors.look("pixels" if decode else "header", report)

    _print_table(findings)
    for line in [*warnings_of(anchors), *(enlarging_lines(anchors) if config.size else [])]:
        say(line)

    # Show and list.
    if sheet:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        good = anchors.without(findings.unreadable) if findings.unreadable else anchors
        image_sheet(good).save(sheet)
        say(f"contact sheet: {sheet}")

    if left_out:
        write_left_out(left_out, anchors.source.left_out, source)
        say(f"files that are not taken: {left_out}")

    return 1 if findings.unreadable else 0


def _anchors(source: str, recipe_name: str | None, overrides: tuple[str, ...]) -> AnchorsConfig:
    """Return the recipe's section with SOURCE for its path; one of its own where no recipe is named."""
    from .recipe import load_recipe

    config = load_recipe(recipe_name, overrides).anchors
    return config.model_copy(update={"path": source})


def summary_of(anchors: ImageSource) -> list[str]:
    """Return lines that say what was taken for what: splits, classes, and what is left out."""
    source = anchors.source
    config = anchors.config
    lines = [
        f"anchors: {source.name}, split {config.split}: {_count(anchors.source_count, 'image')}"
    ]

    if isinstance(source, FolderSource):
        lines += _folders(source)
    lines.append(f"  {_classes(anchors)}")

    lines += [f"  left out: {reason}" for reason in reasons_of(source.left_out)]
    return lines + [f"  note: {note}" for note in source.notes]


def warnings_of(anchors: ImageSource) -> list[str]:
    """Return lines about pixels that are not plain 8-bit RGB, and about images that are of no use."""
    findings = anchors.findings
    background = anchors.config.background
    lines = []

    if findings.alpha:
        place = "is ignored" if background == "none" else f"lets a {background} background through"
        lines.append(
            f"  note: {_count(findings.alpha, 'image')} with alpha, which {place} (anchors.background)"
        )

    if findings.largest_16_bit is not None and anchors.pixels.range is None:
        measured = "anchors.bits" if anchors.config.bits else "measured"
        lines.append(
            f"  note: 16-bit images up to {findings.largest_16_bit}: {anchors.pixels.bits} bits become 8 ({measured})"
        )

    unfit = anchors.why_unfit()
    if unfit and findings.depth != "pixels":
        number = findings.wide + findings.deep_colour
        lines.append(f"  note: {_count(number, 'image')} may need a setting: {unfit}")

    if findings.animated:
        lines.append(
            f"  note: {_count(findings.animated, 'animated image')}; the first frame is taken"
        )

    if findings.broken_exif:
        example = anchors.source.describe(findings.broken_exif[0])
        lines.append(
            f"  note: {_count(len(findings.broken_exif), 'image')} with an EXIF block that cannot be parsed, such as "
            f"{example}; taken all the same"
        )

    for fault in list(findings.unreadable.values())[:SHOWN]:
        lines.append(f"  damaged: {fault}")
    if len(findings.unreadable) > SHOWN:
        lines.append(f"  damaged: and {len(findings.unreadable) - SHOWN} more")

    return lines


def enlarging_lines(anchors: ImageSource) -> list[str]:
    """Return a line about images smaller than `anchors.size`, or why a set of them is refused, where there are such."""
    refused = why_enlarged(anchors)
    if refused:
        return [f"  note: {refused}"]
    note = enlarging_note(anchors)
    return [f"  note: {note}"] if note else []


def _folders(source: FolderSource) -> list[str]:
    """Return a line for every split of a folder: where it is, its images and classes."""
    arrangement = source.arrangement
    if arrangement.layout != "splits":
        return []

    lines = ["  folders taken for splits:"]
    for name, images in arrangement.splits.items():
        told = images.class_counts(arrangement.class_names or ())
        classes = _counts({label: count for label, count in told.items() if count})
        if arrangement.class_names and not classes:
            classes = ", no classes"
        below = f" (all of {images.folder}/)" if images.folder != name else ""
        lines.append(f"    {name}{below}: {_count(len(images.names), 'image')}{classes}")

    return lines


def _classes(anchors: ImageSource) -> str:
    """Return the classes of the images that are taken, with their counts, and where they are from."""
    source = anchors.source
    labels = [source.label(index) for index in range(anchors.source_count)]
    counts = Counter(label for label in labels if label is not None)
    if not counts:
        if isinstance(source, FolderSource):
            return "no classes, which folders or a metadata.csv beside the images would tell"
        return "no classes"

    names = source.class_names or ()
    told: dict[str, int] = {}
    for label, count in sorted(counts.items()):
        name = names[label] if 0 <= label < len(names) else str(label)
        told[name] = count

    without = len(labels) - counts.total()

    unlabelled = f"; {_count(without, 'image')} without a class" if without else ""
    return f"{len(told)} classes from {source.classes_from}{_counts(told)}{unlabelled}"


def _counts(counts: dict[str, int]) -> str:
    """Return `: name count, …` of the first few."""
    told = [f"{name} {count}" for name, count in counts.items()]
    rest = f" and {len(told) - SHOWN} more" if len(told) > SHOWN else ""
    return f": {', '.join(told[:SHOWN])}{rest}" if told else ""


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _print_table(findings: Findings) -> None:
    table = Table("", "images", show_header=True, box=None)
    sizes = findings.sizes
    rows = {
        "format": findings.formats,
        "mode": findings.modes,
        "bits per channel": {str(bits): count for bits, count in findings.bits.items()},
        "size": dict(list(sizes.items())[:SHOWN]),
    }

    for title, counts in rows.items():
        told = ", ".join(f"{name} {count}" for name, count in counts.items())
        if title == "size" and len(sizes) > SHOWN:
            sides = f"sides {findings.smallest_side} to {findings.largest_side}"
            told += f" and {len(sizes) - SHOWN} more sizes, {sides}"
        table.add_row(title, told)

    looked = "all decoded" if findings.depth == "pixels" else "by their headers"
    table.add_row("damaged", f"{len(findings.unreadable)} ({looked})")
    Console().print(table)
