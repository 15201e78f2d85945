"""The report: one self-contained HTML page of a comparison or of a single run."""

import base64
import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from ...core import InputError, write_file
from ...shards import ShardSet, contact_sheet, read_scores
from ...shards.format.layout import scores_path
from .charts import cosine_histograms, feature_maps, run_name, score_histograms, training_curves
from .compare import compare_runs
from .results import quality_path
from .sheets import copies, extremes, pair_sheet
from .tables import DIFFERENCES, difference_rows, footnotes, metric_order, table_rows

SHEET_ROWS = 12
MAPS = 6
Picture = dict[str, str]  # title, note, and either `svg` or the address `png`


def write_report(folder: Path, out: Path, shards: Path | None = None) -> None:
    """Write the page of a comparison (`folder` holds `results.json` and runs below `pretrain/`) or of one run.

    Args:
        shards: the set to show; by default `shards/` in the comparison's folder, or beside the run's `pretrain/`.

    Raises:
        InputError: there is neither a comparison nor a run with results.
    """
    comparison, runs, beside = _contents(folder)
    root = shards or beside / "shards"
    opened = ShardSet(root) if (root / "manifest.json").exists() else None
    missing = [str(run) for run in runs if not run.is_dir()]
    runs = [run for run in runs if run.is_dir()]
    headings, rows = table_rows(comparison)
    template = resources.files(__package__ or "").joinpath("page.html.j2").read_text()
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.from_string(template).render(
        title=folder.absolute().name,
        headings=headings,
        rows=rows,
        footnotes=footnotes(comparison),
        differences=difference_rows(comparison) if comparison["differences"] else None,
        metrics=metric_order(comparison),
        runs=comparison["runs"],
        pictures=[*(_set_pictures(opened) if opened else []), *_run_pictures(runs)],
        shards=_set_facts(opened) if opened else None,
        quality=_quality(opened) if opened else [],
        missing=missing,
        difference_note=DIFFERENCES,
        provenance=_provenance(runs),
    )
    write_file(out, page.encode())


def _contents(folder: Path) -> tuple[dict[str, Any], list[Path], Path]:
    """The comparison, the folders of its runs, and the folder that a set may lie in."""
    if (folder / "results.json").exists():
        try:
            comparison = json.loads((folder / "results.json").read_text())
            runs = [folder / run["folder"] for run in comparison["runs"]]
            comparison = {"differences": [], "published": [], **comparison}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder / 'results.json'} is no comparison ({error}); run clsp compare again"
            ) from error
        return comparison, runs, folder

    if any(folder.glob("*.json")):
        return compare_runs([folder]), [folder], folder.absolute().parent.parent

    raise InputError(
        f"{folder} holds no results.json and no run's results; run clsp compare … --out {folder} first"
    )


def _set_pictures(shards: ShardSet) -> list[Picture]:
    """Contact sheets and histograms of the scores; no pictures of anchors from a set without them."""
    pictures = []
    if shards.plan.shards.include_anchors:
        sheet = contact_sheet(shards, SHEET_ROWS)
        note = "Left of the gap the anchor, right of it the synthetic positives."
        pictures.append(_image("Anchors and their candidates", note, sheet))

    for name in _score_names(shards):
        scores = read_scores(scores_path(shards.root, name), len(shards))
        quality = _read_quality(shards, name)
        if shards.plan.shards.include_anchors:
            pictures += _score_sheets(shards, name, scores, quality)

        if quality:
            shares = quality["result"]["cosine_histogram"]
            note = f"In the features of {quality['encoder']}: candidates beside ordinary augmented views."
            pictures.append(_chart(f"Hardness ({name})", note, cosine_histograms(shares, "svg")))

        note = "A value per candidate; see clsp shards score."
        pictures.append(_chart(f"Scores ({name})", note, score_histograms(scores, "svg")))

    return pictures


def _score_sheets(
    shards: ShardSet, name: str, scores: dict[str, Any], quality: dict[str, Any] | None
) -> list[Picture]:
    pictures = []
    if "cosine" in scores:
        for word, largest in (("Hardest", False), ("Easiest", True)):
            end = "largest" if largest else "smallest"
            note = f"Pairs of anchor and candidate whose features have the {end} cosine."
            pictures.append(
                _image(
                    f"{word} ({name})",
                    note,
                    pair_sheet(extremes(shards, scores["cosine"], largest)),
                )
            )

    suspicious = quality["result"]["suspicious"].get("nearest_train", []) if quality else []
    if suspicious:
        note = "Pairs of a candidate and the anchor nearest to it that it was not made for: copies would look alike."
        pictures.append(
            _image(f"Most suspicious ({name})", note, pair_sheet(copies(shards, suspicious)))
        )

    return pictures


def _run_pictures(runs: Sequence[Path]) -> list[Picture]:
    logged = [run for run in runs if (run / "log.jsonl").exists()]
    pictures = []
    if logged:
        pictures.append(
            _chart("Training", "A line per run, a colour per name.", training_curves(logged, "svg"))
        )

    maps: dict[str, Any] = {}
    for run in runs:
        if (run / "knn.json").exists():
            points = json.loads((run / "knn.json").read_text())["result"].get("map")
            if points and points["x"] and len(maps) < MAPS:
                maps.setdefault(run_name(run), points)

    if maps:
        note = "t-SNE of test images, the first run of each name; a colour per class."
        pictures.append(_chart("Maps of the features", note, feature_maps(maps, "svg")))

    return pictures


def _score_names(shards: ShardSet) -> list[str]:
    return sorted(Path(name).stem for name in shards.manifest.files if name.startswith("scores/"))


def _read_quality(shards: ShardSet, name: str) -> dict[str, Any] | None:
    """The measures of the whole set that go with its scores of that name; None if they are of another content."""
    path = quality_path(shards.root, name)
    content = json.loads(path.read_text()) if path.exists() else {}
    return content if content.get("data") == shards.identity else None


def _quality(shards: ShardSet) -> list[dict[str, Any]]:
    """Per encoder the measures of the whole set, and the suspicious pairs by name."""
    rows = []
    for name in _score_names(shards):
        content = _read_quality(shards, name)
        if content is None:
            continue

        result = content["result"]
        figures = {key: value for key, value in result.items() if isinstance(value, int | float)}
        figures |= {f"mean {key}": value for key, value in result["means"].items()}
        figures = {key.replace("_", " "): f"{value:.4g}" for key, value in figures.items()}
        rows.append(
            {
                "name": content["name"],
                "figures": figures,
                "test": result["suspicious"].get("nearest_test", []),
            }
        )

    return rows


def _set_facts(shards: ShardSet) -> dict[str, Any]:
    return {
        "set ID": shards.set_id,
        "source": f"{shards.plan.source.name}, split {shards.plan.source.split}, {len(shards)} anchors",
        "candidates per anchor": shards.candidates,
        "diffusion model": f"{shards.plan.diffusion.origin}, digest {shards.plan.diffusion.digest}",
        "sampler": shards.plan.sampler_text,
    }


def _provenance(runs: list[Path]) -> dict[str, Any]:
    """Versions, time and the recipe of the first evaluated run; the others differ by method and seed."""
    for run in runs:
        for path in sorted(run.glob("*.json")):
            content = json.loads(path.read_text())
            if "recipe" in content:
                versions = ", ".join(
                    f"{name} {value}" for name, value in content["versions"].items()
                )
                recipe = json.dumps(content["recipe"], indent=2, sort_keys=True)
                return {"versions": versions, "finished": content["finished"], "recipe": recipe}

    return {"versions": "", "finished": "", "recipe": ""}


def _image(title: str, note: str, image: Image.Image) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    address = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"title": title, "note": note, "png": address, "svg": ""}


def _chart(title: str, note: str, svg: bytes) -> Picture:
    return {"title": title, "note": note, "png": "", "svg": svg.decode()}
