"""The report: one self-contained HTML page of everything that a folder of runs holds."""

import base64
import io
import json
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from PIL import Image

from ..shards import InputError, ShardSet, contact_sheet, write_file
from .compare import metric_order, table_rows
from .curves import loss_curves

SHEET_ROWS = 12


def write_report(folder: Path, out: Path) -> None:
    """Write the page of a comparison: `folder` holds `results.json`, runs below `pretrain/` and a set in `shards/`.

    Raises:
        InputError: there is no comparison.
    """
    path = folder / "results.json"
    if not path.exists():
        raise InputError(f"{folder} holds no results.json; run clsp compare … --out {folder} first")
    comparison = json.loads(path.read_text())
    headings, rows = table_rows(comparison)
    runs = [folder / "pretrain" / run["folder"] for run in comparison["runs"]]
    runs = [run for run in runs if run.is_dir()]
    template = resources.files(__package__ or "").joinpath("report.html.j2").read_text()
    page = (
        Environment(autoescape=True, undefined=StrictUndefined)
        .from_string(template)
        .render(
            title=folder.name,
            headings=headings,
            rows=rows,
            metrics=metric_order(comparison),
            runs=comparison["runs"],
            curves=_data_uri(loss_curves(runs, "png"), "png") if runs else None,
            **_shard_facts(folder / "shards"),
            provenance=_provenance(runs),
        )
    )
    write_file(out, page.encode())


def _shard_facts(root: Path) -> dict[str, Any]:
    if not (root / "manifest.json").exists():
        return {"sheet": None, "shards": None}
    shards = ShardSet(root)
    facts = {
        "set ID": shards.set_id,
        "source": f"{shards.plan.source.name}, split {shards.plan.source.split}, {len(shards)} anchors",
        "candidates per anchor": shards.candidates,
        "diffusion model": f"{shards.plan.diffusion.origin}, digest {shards.plan.diffusion.digest}",
        "sampler": shards.plan.sampler_text,
    }
    sheet = _png(contact_sheet(shards, SHEET_ROWS)) if shards.plan.shards.include_anchors else None
    return {"sheet": sheet and _data_uri(sheet, "png"), "shards": facts}


def _provenance(runs: list[Path]) -> dict[str, Any]:
    """Versions, time and the recipe of the first evaluated run; the others differ by method and seed."""
    for run in runs:
        for path in sorted(run.glob("*.json")):
            content = json.loads(path.read_text())
            if "recipe" in content:
                versions = ", ".join(f"{name} {value}" for name, value in content["versions"].items())
                recipe = json.dumps(content["recipe"], indent=2, sort_keys=True)
                return {"versions": versions, "finished": content["finished"], "recipe": recipe}
    return {"versions": "", "finished": "", "recipe": ""}


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _data_uri(content: bytes, image_format: str) -> str:
    return f"data:image/{image_format};base64,{base64.b64encode(content).decode()}"
