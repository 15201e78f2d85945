"""`clsp images`: what a source holds, how it was understood, and what of it is left out."""

from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ..core import InputError
from ..shards import AnchorsConfig, ImageSource
from ..shards.reading.contact_sheet import image_sheet
from ..shards.sources.folder import FolderSource
from ..shards.sources.left_out import write_left_out
from ..shards.sources.survey import Findings
from ..shards.sources.walk import count_by_reason
from .options import PATH, set_option
from .progress import ProgressReport, say

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
    anchors = ImageSource(config.model_copy(update={"on_error": "skip"}))
    for line in summary_of(anchors):
        say(line)

    # Look at its images.
    with ProgressReport("looking at the images", "images") as report:
        findings = anchors.look("pixels" if decode else "header", report)

    _print_table(findings)
    for line in warnings_of(anchors):
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

    given = (*overrides, f"anchors.path={source}")
    config = load_recipe(recipe_name or "digits", given).anchors
    # A contact sheet has a size in any case.
    return config if config.size else config.model_copy(update={"size": 64})


def summary_of(anchors: ImageSource) -> list[str]:
    """Return lines that say what was taken for what: splits, classes, and what is left out."""
    source = anchors.source
    config = anchors.config
    classes = f", {len(source.class_names)} classes" if source.class_names else ""
    lines = [
        f"anchors: {source.name}, split {config.split}: {anchors.source_count} images{classes}"
    ]

    if isinstance(source, FolderSource):
        lines += _folders(source)

    for reason, files in count_by_reason(source.left_out).items():
        lines.append(f"  left out: {len(files)} {reason}, such as {files[0].name}")

    return lines + [f"  note: {note}" for note in source.notes]


def warnings_of(anchors: ImageSource) -> list[str]:
    """Return lines about pixels that are not plain 8-bit RGB, and about images that are of no use."""
    findings = anchors.findings
    background = anchors.config.background
    lines = []

    if findings.alpha and background == "none":
        lines.append(f"  note: {findings.alpha} images have alpha, which is ignored")
    elif findings.alpha:
        lines.append(
            f"  note: {findings.alpha} images have alpha; they get a {background} background (anchors.background)"
        )

    if findings.largest_16_bit is not None and anchors.pixels.range is None:
        measured = "anchors.bits" if anchors.config.bits else "measured"
        lines.append(
            f"  note: 16-bit images up to {findings.largest_16_bit}: {anchors.pixels.bits} bits become 8 ({measured})"
        )

    if findings.wide and anchors.pixels.range is None:
        lines.append(
            f"  note: {findings.wide} images of floats or 32-bit integers need anchors.range"
        )

    if findings.animated:
        lines.append(f"  note: {findings.animated} images are animated; the first frame is taken")

    if findings.broken_exif:
        example = anchors.source.describe(findings.broken_exif[0])
        lines.append(
            f"  note: {len(findings.broken_exif)} images have an EXIF block that cannot be parsed, such as {example}; "
            "they are taken"
        )

    for fault in list(findings.unreadable.values())[:SHOWN]:
        lines.append(f"  damaged: {fault}")
    if len(findings.unreadable) > SHOWN:
        lines.append(f"  damaged: and {len(findings.unreadable) - SHOWN} more")

    return lines


def _folders(source: FolderSource) -> list[str]:
    """Return a line for every split: its folder, images and classes."""
    arrangement = source.arrangement
    lines = [
        f"  folders taken for {arrangement.layout}"
        if arrangement.layout != "flat"
        else "  no classes"
    ]
    class_names = arrangement.class_names or ()

    for name, images in arrangement.splits.items():
        counts = images.class_counts(class_names)
        told = [f"{label} {count}" for label, count in counts.items() if count]
        classes = ", ".join(told[:SHOWN])
        if len(told) > SHOWN:
            classes += f" and {len(told) - SHOWN} more"

        folder = f" ({images.folder}/)" if images.folder else ""
        lines.append(
            f"  split {name}{folder}: {len(images.names)} images{': ' if told else ''}{classes}"
        )

    return lines


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

    looked = {"header": "by their headers", "bytes": "by their headers", "pixels": "all decoded"}[
        findings.depth
    ]
    table.add_row("damaged", f"{len(findings.unreadable)} ({looked})")
    Console().print(table)
