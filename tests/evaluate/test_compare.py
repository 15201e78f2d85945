import json
import statistics

import pytest
from clsp.evaluate import compare_runs, markdown_table, write_comparison
from clsp.shards import InputError


def write_run(folder, name, seed, top1, k20):
    folder.mkdir(parents=True)
    for task, result in (
        ("linear", {"protocol": "clsp", "top1": top1, "top1_interval": [0, 100]}),
        ("knn", {"k20": k20}),
    ):
        content = {"task": task, "result": result, "name": name, "seed": seed, "set": "s", "checkpoint": "c"}
        (folder / f"{task}.json").write_text(json.dumps(content))
    return folder


def test_means_and_sample_deviations_over_seeds(tmp_path):
    values = {"simclr": [90.0, 92.0, 95.5], "simclr+shards": [93.0, 94.0, 96.0]}
    folders = [
        write_run(tmp_path / f"{name}-s{seed}", name, seed, top1, top1 - 1)
        for name, tops in values.items()
        for seed, top1 in enumerate(tops)
    ]
    write_comparison(compare_runs(folders), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())
    assert len(found["runs"]) == 6
    for row in found["summary"]:
        tops = values[row["name"]]
        assert row["seeds"] == [0, 1, 2]
        assert row["metrics"]["linear.top1"] == {
            "mean": pytest.approx(statistics.mean(tops)),
            "std": pytest.approx(statistics.stdev(tops)),
            "n": 3,
        }
        assert row["metrics"]["knn.k20"]["mean"] == pytest.approx(statistics.mean(tops) - 1)
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert lines[0].startswith("| run | seeds | linear top-1 |") and "92.50 ± 2.78" in lines[2]


def test_one_seed_has_no_deviation(tmp_path):
    comparison = compare_runs([write_run(tmp_path / "a-s0", "a", 0, 90.0, 80.0)])
    assert comparison["summary"][0]["metrics"]["linear.top1"]["std"] is None
    assert "90.00 |" in markdown_table(comparison)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no results"):
        compare_runs([tmp_path])


def test_runs_that_a_mean_must_not_mix_are_refused(tmp_path):
    first = write_run(tmp_path / "a", "simclr", 0, 90.0, 80.0)
    with pytest.raises(InputError, match="are both simclr seed 0"):
        compare_runs([first, write_run(tmp_path / "b", "simclr", 0, 91.0, 81.0)])
    other = write_run(tmp_path / "c", "simclr", 1, 91.0, 81.0)
    path = other / "linear.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "set": "another"}))
    with pytest.raises(InputError, match="different shard sets"):
        compare_runs([first, other])
