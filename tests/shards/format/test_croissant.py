import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import mlcroissant
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clsp.shards import Plan
from clsp.shards.format.croissant import croissant
from clsp.shards.format.plan import read_plan

# mlcroissant reads JSON-LD with rdflib and parquet with pandas, whose deprecations are its own.
pytestmark = pytest.mark.filterwarnings(
    "ignore:ConjunctiveGraph is deprecated:DeprecationWarning",
    "ignore:The inplace keyword in DataFrame.reset_index:Warning",
)
COLUMNS = ["key", "index", "label", "shard"]


def describe(root: Path, plan: Plan, layers: int = 1) -> Path:
    """Write `croissant.json` into the set at `root` for so many layers."""
    names = [f"layer-{number:03d}" for number in range(layers)]
    digests = [
        hashlib.sha256((root / f"{name}.parquet").read_bytes()).hexdigest() for name in names
    ]
    path = root / "croissant.json"
    path.write_bytes(
        croissant(
            plan, [(name, plan.image_fields, sha) for name, sha in zip(names, digests, strict=True)]
        )
    )
    return path


@pytest.fixture
def copy(shard_set, tmp_path) -> Path:
    return shutil.copytree(shard_set, tmp_path / "set")


def rewrite(root: Path, name: str, change: Callable) -> None:
    """Change a column of the index."""
    table = pq.read_table(root / "layer-000.parquet")
    pq.write_table(
        table.set_column(table.column_names.index(name), name, change(table[name])),
        root / "layer-000.parquet",
    )


def issues(dataset) -> tuple[list[str], list[str]]:
    found = dataset.metadata.ctx.issues
    return sorted(found.errors), sorted(found.warnings)


def rows_of(dataset, name: str) -> list[dict]:
    """The records of a record set, with plain names and text."""
    rows = [
        {field.removeprefix(f"{name}/"): value for field, value in row.items()}
        for row in dataset.records(name)
    ]
    return [{**row, "key": row["key"].decode()} for row in rows]


@pytest.mark.parametrize("layers", [1, 2])
def test_mlcroissant_accepts_it_and_reads_the_index(copy, layers):
    shutil.copy(copy / "layer-000.parquet", copy / "layer-001.parquet")
    dataset = mlcroissant.Dataset(jsonld=str(describe(copy, read_plan(copy), layers)))
    errors, warnings = issues(dataset)
    assert (
        errors == [] and len(warnings) == 1 and "datePublished" in warnings[0]
    )  # a set knows no time
    assert (
        dataset.metadata.license == ["cc-by-4.0"]
        and dataset.metadata.version == f"1.{layers - 1}.0"
    )
    assert "2408.16965" in dataset.metadata.cite_as
    expected = pq.read_table(copy / "layer-000.parquet", columns=COLUMNS).to_pylist()
    assert len(expected) == 40 and len(dataset.metadata.record_sets) == layers
    for number in range(layers):
        assert rows_of(dataset, f"layer-{number:03d}") == expected


def test_it_reads_an_index_without_labels(copy):
    rewrite(copy, "label", lambda column: pa.nulls(len(column), column.type))
    dataset = mlcroissant.Dataset(jsonld=str(describe(copy, read_plan(copy))))
    assert [row["label"] for row in rows_of(dataset, "layer-000")] == [None] * 40


def test_a_damaged_index_is_refused(copy):
    path = describe(copy, read_plan(copy))
    with (copy / "layer-000.parquet").open("ab") as file:
        file.write(b"x")
    with pytest.raises(mlcroissant.GenerationError) as caught:
        rows_of(mlcroissant.Dataset(jsonld=str(path)), "layer-000")
    assert "Hash" in repr(caught.value.__cause__)


def test_it_names_existing_files_and_no_licence_where_none_is_known(copy):
    plan = read_plan(copy)
    silent = plan.model_copy(update={"source": plan.source.model_copy(update={"licence": ""})})
    path = describe(copy, silent)
    content = json.loads(path.read_bytes())
    assert "license" not in content and issues(mlcroissant.Dataset(jsonld=str(path)))[0] == []
    index, tars = content["distribution"]
    assert (copy / index["contentUrl"]).is_file() and len(
        list(copy.glob(tars["includes"]))
    ) == plan.shard_count


def test_its_size_does_not_grow_with_shards_and_candidates(shard_set):
    def size(records: int, candidates: int) -> int:
        plan = read_plan(shard_set)
        shards = plan.shards.model_copy(update={"records": records, "candidates": candidates})
        large = Plan(
            source=plan.source.model_copy(update={"count": 10_000_000}),
            diffusion=plan.diffusion,
            sampler=plan.sampler,
            shards=shards,
        )
        assert large.shard_count == 10_000_000 // records
        return len(croissant(large, [("layer-000", large.image_fields, "0" * 64)]))

    assert size(1000, 256) == size(1000, 8) == size(1_000_000, 8) < 10_000
