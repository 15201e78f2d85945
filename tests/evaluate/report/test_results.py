"""Result files and comparisons of other versions are read, and what is read is written again as it was."""

import json
import shutil

import numpy as np
import pytest
from clsp.core import InputError, canonical_json
from clsp.evaluate import RunResult, compare_runs, quality_path, write_report
from clsp.evaluate.report.results import read_results
from clsp.shards import ShardSet
from clsp.shards.reading.scores import add_scores

OLD = {
    "task": "linear",
    "result": {"top1": 90},
    "name": "a",
    "seed": 0,
    "set": "s",
    "checkpoint": "c",
}
NEW = {
    **OLD,
    "result": {"top1": 90.5, "top1_interval": [89, 91.5], "protocol": "clsp", "few_labels": None},
    "sets": {"dtd": {"metric": "top1", "top1": 70, "set": None}},
    "recipe": {"linear_eval": {"labels": [0.1, 1], "test_path": ""}},
    "a key of tomorrow": [1, 2.0, {"deep": None}],
}


@pytest.mark.parametrize("content", [OLD, NEW], ids=["old", "new"])
def test_a_result_is_written_as_it_was_read(content):
    text = canonical_json(content)
    assert canonical_json(RunResult.model_validate(json.loads(text)).content()) == text


def test_whole_numbers_stay_whole(tmp_path):
    """Keep the type of a figure, which a column of floats would not."""
    (tmp_path / "linear.json").write_text(json.dumps(OLD))
    (found,) = compare_runs([tmp_path]).model_dump()["runs"]
    assert json.dumps(found["metrics"]) == '{"linear.top1": 90}'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"linear\.json is no result, for it is not JSON"),
        ('{"task": "linear"}', r"linear\.json is no result \(result: Field required\)"),
    ],
)
def test_a_damaged_result_is_refused(tmp_path, text, message):
    (tmp_path / "linear.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_results(tmp_path)


def test_a_page_of_an_older_comparison_and_older_measures(tmp_path, shard_set):
    """Of a version that knew no differences, no Student's interval and few measures."""
    run = {
        "folder": "gone",
        "name": "a",
        "seed": 0,
        "checkpoint": "c" * 64,
        "metrics": {"knn.k20": 7},
    }
    mean = {"mean": 7.0, "std": None, "n": 1}
    summary = [{"name": "a", "seeds": [0], "metrics": {"knn.k20": mean}}]
    old = {"runs": [run], "summary": summary}
    (tmp_path / "results.json").write_text(json.dumps(old))
    write_report(tmp_path, tmp_path / "old.html")
    assert "7.00" in (tmp_path / "old.html").read_text()

    difference = {"mean": 1.25, "interval": [0.5, 2.0], "n": 3}
    rows = [{"name": "a", "baseline": "b", "metrics": {"knn.k20": difference}}]
    (tmp_path / "results.json").write_text(json.dumps({**old, "differences": rows}))
    shutil.copytree(shard_set, tmp_path / "shards")
    shards = ShardSet(tmp_path / "shards")
    scores = np.linspace(0, 1, 3 * len(shards), dtype=np.float32).reshape(-1, 3)
    add_scores(shards.root, "tiny", map(shards.key, range(len(shards))), {"diversity": scores})
    result = {
        "frechet_distance": 1.5,
        "tomorrows_measure": 2,
        "means": {"diversity": 0.5},
        "suspicious": {},
        "cosine_histogram": {"candidate": [0.25, 0.75]},
    }
    content = {"name": "tiny", "encoder": "e", "data": shards.identity, "result": result}
    quality_path(shards.root, "tiny").write_text(json.dumps(content))
    write_report(tmp_path, tmp_path / "newer.html")
    page = (tmp_path / "newer.html").read_text()
    assert "<td>+1.25</td>" in page
    assert "<dt>frechet distance</dt><dd>1.5</dd>" in page
    assert "<dt>tomorrows measure</dt><dd>2</dd><dt>mean diversity</dt><dd>0.5</dd>" in page
    assert "kernel distance" not in page
