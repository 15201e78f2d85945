"""Write the report: one self-contained HTML page of a comparison or of a single run."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from PIL import Image
from pydantic import ValidationError

from ...core import InputError, first_fault, write_file
from ...shards import ShardSet, contact_sheet, read_scores
from ...shards.format.layout import scores_path
from ...shards.reading.measures import find_measure
from ...shards.reading.thumbnails import SMALLEST
from ..probes.registry import PROBES
from ..quality.auroc import AUROC_NOTE
from ..quality.facts import QualityFacts, QualityResult, SuspiciousPair
from .charts import (
    LOG,
    Points,
    cosine_histograms,
    feature_maps,
    name_of,
    score_histograms,
    training_curves,
)
from .compare import Comparison, compare_runs
from .results import quality_path, result_path
from .sheets import copies, extremes, pair_sheet
from .tables import DIFFERENCES, difference_rows, footnotes, metric_order, table_rows

SHEET_ROWS = 12
MAPS = 6


@dataclass(frozen=True)
class _Picture:
    """Holds a picture of the page: a chart as SVG, or the address of an image."""

    title: str
    note: str
    svg: str = ""
    address: str = ""
    """The picture itself, as a `data:` address."""


@dataclass(frozen=True)
class _EncoderQuality:
    """Holds the measures of the whole set by one encoder, ready to show."""

    name: str
    figures: Mapping[str, str]
    test: Sequence[SuspiciousPair]
    """The candidates nearest to test images."""
    areas: Sequence[Sequence[str]]
    """Rows of the table that tells how well label-free measures find right candidates; empty where nothing does."""


@dataclass(frozen=True)
class _Provenance:
    """Holds what the first evaluated run was made with; the others differ by method and seed."""

    versions: str = ""
    finished: str = ""
    recipe: str = ""


@dataclass(frozen=True)
class _Contents:
    """Holds what a folder has to show."""

    comparison: Comparison
    runs: Sequence[Path]
    beside: Path
    """The folder that the runs' set may lie in, as `shards/`."""


def write_report(folder: Path, out: Path, shards: Path | None = None) -> None:
    """Write the page of a comparison (`folder` holds `results.json` and runs below `pretrain/`) or of one run.

    Args:
        shards: the set to show; by default `shards/` in the comparison's folder, or beside the run's `pretrain/`.

    Raises:
        InputError: there is neither a comparison nor a run with results.
    """
    # What there is to show
    contents = _contents(folder)
    comparison = contents.comparison
    root = shards or contents.beside / "shards"
    opened = ShardSet(root) if (root / "manifest.json").exists() else None
    missing = [str(run) for run in contents.runs if not run.is_dir()]
    runs = [run for run in contents.runs if run.is_dir()]
    headings, rows = table_rows(comparison)

    # Pictures
    pictures = _set_pictures(opened) if opened else []
    pictures += _run_pictures(runs)

    # The page
    template = (
        resources.files(__package__ or "").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        title=folder.absolute().name,
        headings=headings,
        rows=rows,
        footnotes=footnotes(comparison),
        differences=difference_rows(comparison) if comparison.differences else None,
        metrics=metric_order(comparison),
        runs=comparison.runs,
        pictures=pictures,
        shards=_set_facts(opened) if opened else None,
        quality=_quality(opened) if opened else [],
        missing=missing,
        difference_note=DIFFERENCES,
        auroc_note=AUROC_NOTE,
        provenance=_provenance(runs),
    )
    write_file(out, page.encode())


def _contents(folder: Path) -> _Contents:
    """Return the comparison of a folder, or of the single run that it is."""
    path = folder / "results.json"
    if path.exists():
        comparison = _read_comparison(path)
        runs = [folder / run.folder for run in comparison.runs]
        return _Contents(comparison, runs, folder)

    if any(folder.glob("*.json")):
        return _Contents(compare_runs([folder]), [folder], folder.absolute().parent.parent)

    raise InputError(
        f"{folder} holds no results.json and no run's results; run clsp compare … --out {folder} first"
    )


def _read_comparison(path: Path) -> Comparison:
    try:
        return Comparison.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        reason = first_fault(error) if isinstance(error, ValidationError) else error
        raise InputError(f"{path} is no comparison ({reason}); run clsp compare again") from error


# Pictures


def _set_pictures(shards: ShardSet) -> list[_Picture]:
    """Draw contact sheets and histograms of the scores; no pictures of anchors from a set without them."""
    # Candidates beside their anchors
    pictures = []
    if shards.plan.shards.include_anchors:
        sheet = contact_sheet(shards, SHEET_ROWS)
        note = "Left of the gap the anchor, right of it the synthetic positives."
        pictures.append(_image("Anchors and their candidates", note, sheet, shards.size))

    # The scores, by every name
    for name in _score_names(shards):
        scores = read_scores(scores_path(shards.root, name), len(shards))
        quality = _read_quality(shards, name)
        if shards.plan.shards.include_anchors:
            pictures += _score_sheets(shards, name, scores, quality)

        if quality:
            shares = quality.result.cosine_histogram
            note = (
                f"In the features of {quality.encoder}: candidates beside ordinary augmented views."
            )
            if quality.result.too_easy_note:
                note += f" {quality.result.too_easy_note}"
            pictures.append(_chart(f"Hardness ({name})", note, cosine_histograms(shares, "svg")))

        note = "A value per candidate; see clsp shards score."
        pictures.append(_chart(f"Scores ({name})", note, score_histograms(scores, "svg")))

    return pictures


def _score_sheets(
    shards: ShardSet, name: str, scores: Mapping[str, np.ndarray], quality: QualityResult | None
) -> list[_Picture]:
    """Draw the hardest, the easiest and the most suspicious candidates."""
    pictures = []
    if "cosine" in scores:
        for word, largest in (("Hardest", False), ("Easiest", True)):
            end = "largest" if largest else "smallest"
            note = f"Pairs of anchor and candidate whose features have the {end} cosine."
            sheet = pair_sheet(extremes(shards, scores["cosine"], largest))
            pictures.append(_image(f"{word} ({name})", note, sheet, shards.size))

    suspicious = quality.result.suspicious.get("nearest_train", []) if quality else []
    if suspicious:
        note = "Pairs of a candidate and the anchor nearest to it that it was not made for: copies would look alike."
        sheet = pair_sheet(copies(shards, suspicious))
        pictures.append(_image(f"Most suspicious ({name})", note, sheet, shards.size))

    return pictures


def _run_pictures(runs: Sequence[Path]) -> list[_Picture]:
    """Draw the runs' training curves and the maps of their features."""
    logged = [run for run in runs if (run / LOG).exists()]
    pictures = []
    if logged:
        note = "A line per run, a colour per name."
        pictures.append(_chart("Training", note, training_curves(logged, "svg")))

    maps: dict[str, Points] = {}
    for run in runs:
        points = _read_map(run)
        if points and len(maps) < MAPS:
            maps.setdefault(name_of(run), points)

    if maps:
        note = "t-SNE of test images, the first run of each name; a colour per class."
        pictures.append(_chart("Maps of the features", note, feature_maps(maps, "svg")))

    return pictures


def _read_map(run: Path) -> Points | None:
    """Read the map of a run's features, None without one or where it is empty."""
    for probe in PROBES:
        path = result_path(run, probe.task)
        if probe.has_map and path.exists():
            points = json.loads(path.read_text(encoding="utf-8"))["result"].get("map")
            if points and points["x"]:
                return points

    return None


# Facts


def _score_names(shards: ShardSet) -> list[str]:
    return sorted(Path(name).stem for name in shards.manifest.files if name.startswith("scores/"))


def _read_quality(shards: ShardSet, name: str) -> QualityResult | None:
    """Read the measures of the whole set that go with its scores of that name; None if they are of another content."""
    path = quality_path(shards.root, name)
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if content.get("data") != shards.identity:
        return None
    return QualityResult.model_validate(content)


def _quality(shards: ShardSet) -> list[_EncoderQuality]:
    """Return per encoder the measures of the whole set, and the suspicious pairs by name."""
    rows = []
    for name in _score_names(shards):
        quality = _read_quality(shards, name)
        if quality is None:
            continue

        numbers = quality.result.numbers()
        for measure, mean in quality.result.means.items():
            numbers[f"mean {measure}"] = mean

        figures = {key.replace("_", " "): _figure_text(value) for key, value in numbers.items()}
        test = quality.result.suspicious.get("nearest_test", [])
        rows.append(_EncoderQuality(quality.name, figures, test, _area_rows(quality.result)))

    return rows


def _figure_text(value: float) -> str:
    """Return a count as it is, and four digits of a measure."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def _area_rows(facts: QualityFacts) -> list[list[str]]:
    """Return per label-free measure its better end, and the area under the ROC curve."""
    rows = []
    for name in facts.auroc:
        rows.append([name.replace("_", " "), find_measure(name).better, facts.area_text(name)])

    return rows


def _set_facts(shards: ShardSet) -> dict[str, str | int]:
    """Return the facts of a set by the names that the page shows."""
    source = shards.plan.source
    diffusion = shards.plan.diffusion
    return {
        "set ID": shards.set_id,
        "source": f"{source.name}, split {source.split}, {len(shards)} anchors",
        **source.facts,
        "candidates per anchor": shards.candidates,
        "diffusion model": f"{diffusion.origin}, digest {diffusion.digest}",
        "sampler": shards.plan.sampler_text,
    }


def _provenance(runs: Sequence[Path]) -> _Provenance:
    """Read versions, time and the recipe of the first evaluated run; the others differ by method and seed."""
    for run in runs:
        for path in sorted(run.glob("*.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            if "recipe" in content:
                versions = [f"{name} {value}" for name, value in content["versions"].items()]
                recipe = json.dumps(content["recipe"], indent=2, sort_keys=True)
                return _Provenance(", ".join(versions), content["finished"], recipe)

    return _Provenance()


def _image(title: str, note: str, image: Image.Image, size: int) -> _Picture:
    """Put a sheet of images of `size` pixels into the page: small ones to the pixel, photographs in few bytes."""
    buffer = io.BytesIO()
    is_enlarged = size < SMALLEST
    if is_enlarged:
        image.save(buffer, format="PNG", optimize=True)
    else:
        image.save(buffer, format="JPEG", quality=85)

    kind = "png" if is_enlarged else "jpeg"
    text = base64.b64encode(buffer.getvalue()).decode()
    return _Picture(title, note, address=f"data:image/{kind};base64,{text}")


def _chart(title: str, note: str, svg: bytes) -> _Picture:
    return _Picture(title, note, svg=svg.decode())
