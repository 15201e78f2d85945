import json
import statistics

import pytest
from clsp.core import InputError
from clsp.evaluate import (
    compare_runs,
    footnotes,
    markdown_table,
    write_comparison,
    write_report,
)


def write_run(folder, name, seed, top1, k20):
    folder.mkdir(parents=True)
    for task, result in (
        ("linear", {"protocol": "clsp", "top1": top1, "top1_interval": [0, 100]}),
        ("knn", {"k20": k20}),
    ):
        content = {
            "task": task,
            "result": result,
            "name": name,
            "seed": seed,
            "set": "s",
            "checkpoint": "c",
        }
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
    assert comparison.summary[0].metrics["linear.top1"].std is None
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
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "set": "another"}))
    with pytest.raises(InputError, match="different shard sets"):
        compare_runs([first, other])
    for folder in (first, other):  # the same content, to which scores were added between the runs
        path = folder / "linear.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "data": {"plan": "p"}}))
    compare_runs([first, other])


def test_differences_are_paired_by_seed(tmp_path):
    runs = {"simclr": [80.0, 90.0, 85.0], "simclr+shards": [81.0, 91.5, 85.5], "other": [70.0]}
    folders = [
        write_run(tmp_path / f"{name}-{seed}", name, seed, top1, top1)
        for name, tops in runs.items()
        for seed, top1 in enumerate(tops)
    ]
    comparison = compare_runs(folders)
    rows = {row.name: row for row in comparison.differences}
    found = rows["simclr+shards"].metrics["linear.top1"]
    assert rows["simclr+shards"].baseline == "simclr" and found.n == 3
    assert found.mean == pytest.approx(1.0)  # the spread of 5 between the seeds does not enter
    low, high = found.interval
    assert 0.5 <= low < 1.0 < high <= 1.5
    assert rows["other"].metrics["linear.top1"].model_dump() == {
        "mean": -10.0,
        "interval": None,
        "t_interval": None,
        "n": 1,
    }
    t_low, t_high = found.t_interval  # mean 1, deviation 0.5, n 3: 1 ± 4.303 · 0.5 / √3
    assert (t_low, t_high) == (
        pytest.approx(1 - 1.2421, abs=1e-3),
        pytest.approx(1 + 1.2421, abs=1e-3),
    )
    assert {row.name for row in compare_runs(folders, "other").differences} == {
        "simclr",
        "simclr+shards",
    }
    with pytest.raises(InputError, match="--baseline none"):
        compare_runs(folders, "none")


def test_sources_are_compared_with_the_third_view_of_their_method_too(tmp_path):
    tops = {
        "simclr": 80.0,
        "simclr+augmentation": 81.0,
        "simclr+shards": 84.0,
        "mocov2plus+shards": 70.0,
    }
    folders = [
        write_run(tmp_path / f"{name}-{seed}", name, seed, top1 + seed, 50.0)
        for name, top1 in tops.items()
        for seed in (0, 1)
    ]
    rows = compare_runs(folders).differences
    found = {(row.name, row.baseline): row.metrics["linear.top1"].mean for row in rows}
    assert found == {
        ("simclr+augmentation", "simclr"): 1.0,
        ("simclr+shards", "simclr"): 4.0,
        ("mocov2plus+shards", "simclr"): -10.0,
        ("simclr+shards", "simclr+augmentation"): 3.0,
    }
    assert {row.baseline for row in compare_runs(folders, "simclr").differences} == {"simclr"}


def test_runs_that_chose_by_labels_are_marked_and_stand_beside_no_published_figure(tmp_path):
    names = ("simclr", "simclr+augmentation", "simclr+shards", "simclr+shards+labels")
    recipe = {
        "anchors": {"path": "uoft-cs/cifar10"},
        "pretrain": {"backbone": "resnet18", "stem": "cifar"},
    }
    folders = []
    for name in names:
        folder = write_run(tmp_path / name, name, 0, 90.0, 80.0)
        path = folder / "linear.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "recipe": recipe}))
        folders.append(folder)

    # A row of its own, compared with what the others are, and in the table a note
    comparison = compare_runs(folders)
    assert [row.name for row in comparison.summary] == list(names)
    assert [row.name for row in comparison.published] == list(names[:3])
    pairs = [(row.name, row.baseline) for row in comparison.differences]
    assert pairs[-2:] == [(name, "simclr+augmentation") for name in names[2:]]
    assert (names[3], "simclr") in pairs
    assert "so these runs are not self-supervised" in markdown_table(comparison)
    assert "self-supervised" not in markdown_table(compare_runs(folders[:3]))

    # The page has the note, too
    write_comparison(comparison, tmp_path)
    write_report(tmp_path, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<td>simclr+shards+labels</td>" in page and "are not self-supervised" in page


def test_results_of_a_run_that_was_named_before_there_was_the_mark_get_it(tmp_path):
    folder = write_run(tmp_path / "a", "simclr+shards", 0, 90.0, 80.0)
    synthetic = {"scores": "probe", "measure": "agreement", "minimum": 0.5}
    run = {"name": "simclr+shards", "seed": 0, "pretrain": {"synthetic": synthetic}}
    (folder / "run.json").write_text(json.dumps(run))
    assert [row.name for row in compare_runs([folder]).summary] == ["simclr+shards+labels"]

    # Not those of another run or model that lie there
    for task in ("linear", "knn"):
        path = folder / f"{task}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "name": "resnet18"}))
    assert [row.name for row in compare_runs([folder]).summary] == ["resnet18"]


def test_published_figures_say_that_the_authors_chose_no_candidates(tmp_path):
    folder = write_run(tmp_path / "a", "simclr+shards", 0, 90.0, 80.0)
    recipe = {
        "anchors": {"path": "uoft-cs/cifar10"},
        "pretrain": {"backbone": "resnet18", "stem": "cifar", "synthetic": {"keep": 2}},
    }
    path = folder / "linear.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "recipe": recipe}))
    (row,) = compare_runs([folder]).published
    assert "pretrain.synthetic.keep 2 here, None there" in row.differences
    assert not any("synthetic.minimum" in difference for difference in row.differences)


def test_the_bootstrap_interval_is_scipys():
    import numpy as np
    from clsp.evaluate.report.compare import bootstrap_interval
    from scipy.stats import bootstrap

    values = [1.0, 2.0, 4.0, 4.5, 7.0, 8.0]
    expected = bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000
    ).confidence_interval
    assert bootstrap_interval(values) == pytest.approx(list(expected), abs=0.1)


def test_published_figures_stand_beside_with_what_differs(tmp_path):
    folder = write_run(tmp_path / "a", "simclr+shards", 0, 90.0, 80.0)
    recipe = {
        "anchors": {"path": "/data/cifar10"},
        "pretrain": {"backbone": "resnet18", "stem": "cifar", "epochs": 100, "batch_size": 1024},
        "linear_eval": {"train_limit": 0},
    }
    path = folder / "linear.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "recipe": recipe}))
    write_comparison(compare_runs([folder]), tmp_path)
    found = json.loads((tmp_path / "results.json").read_text())["published"][0]
    assert found["metrics"] == {"linear.top1": 94.45, "knn.replica_best_on_test": 94.10}
    told = (tmp_path / "results.md").read_text()
    assert (
        "94.45" in told and "epochs 100 here, 1000 there" in told and "/data/cifar10 here" in told
    )
    assert "batch_size" not in told


def test_the_csv_holds_what_the_json_holds(tmp_path):
    import csv

    folders = [
        write_run(tmp_path / f"{n}{s}", n, s, 90.0 + s, 80.0)
        for n in ("simclr", "b")
        for s in (0, 1, 2)
    ]
    comparison = compare_runs(folders)
    write_comparison(comparison, tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").read_text().splitlines()))
    means = {
        (row["name"], row["metric"]): float(row["value"]) for row in rows if row["kind"] == "mean"
    }
    assert means["simclr", "linear.top1"] == comparison.summary[0].metrics["linear.top1"].mean
    assert sum(row["kind"] == "run" for row in rows) == sum(
        len(run.metrics) for run in comparison.runs
    )
    assert {row["name"] for row in rows if row["kind"] == "difference"} == {"b - simclr"}
    shown = next(
        row for row in rows if row["kind"] == "difference" and row["metric"] == "linear.top1"
    )
    assert [float(shown["low"]), float(shown["high"])] == comparison.differences[0].metrics[
        "linear.top1"
    ].t_interval


def test_evaluations_under_other_conditions_are_not_compared(tmp_path):
    folders = [write_run(tmp_path / name, name, 0, 90.0, 80.0) for name in ("a", "b")]
    path = folders[1] / "linear.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "precision": "bf16"}))
    with pytest.raises(InputError, match="linear was evaluated in another way .*precision"):
        compare_runs(folders)


def test_one_precision_for_all_evaluations_of_a_comparison(tmp_path):
    """Also where they are of different tasks."""
    folder = write_run(tmp_path / "a", "a", 0, 90.0, 80.0)
    for task, precision in (("linear", "no"), ("knn", "bf16")):
        path = folder / f"{task}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "precision": precision}))
    with pytest.raises(
        InputError, match=r"float32 in .*a \(linear\), bfloat16 in .*a \(knn\); evaluate all in one"
    ):
        compare_runs([folder])


def test_the_same_run_twice_is_refused(tmp_path):
    folders = [write_run(tmp_path / parent / "s0", "a", 0, 90.0, 80.0) for parent in ("x", "y")]
    for twice in (folders, folders[:1] * 2):
        with pytest.raises(InputError, match="are both a seed 0"):
            compare_runs(twice)


def test_transfer_means_are_over_the_sets_that_all_runs_have(tmp_path):
    folders = [write_run(tmp_path / name, name, 0, 90.0, 80.0) for name in ("a", "b")]
    for folder, result in zip(
        folders, ({"x": 10.0, "y": 30.0, "z": 90.0}, {"x": 20.0, "y": 50.0}), strict=True
    ):
        sets = {name: {"set": {"path": name}} for name in result}
        content = {
            "task": "transfer",
            "result": result,
            "name": folder.name,
            "seed": 0,
            "set": "s",
            "checkpoint": "c",
        }
        (folder / "transfer.json").write_text(json.dumps({**content, "sets": sets}))
    means = {row.name: row.metrics["transfer.mean"].mean for row in compare_runs(folders).summary}
    assert means == {"a": 20.0, "b": 35.0}


# Settings behind one name


def record_run(folder, name, seed, **settings):
    """Write results with the record of the run beside them."""
    write_run(folder, name, seed, 90.0 + seed, 80.0)
    pretrain = {"seed": seed, "lr": 0.5, "synthetic": {"weight": 1.0}, **settings}
    record = {"name": name, "seed": seed, "set": "s", "pretrain": pretrain}
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def test_runs_of_one_name_with_different_settings_are_told_in_one_line(tmp_path):
    several = {"weight": 1.0, "candidates": 4}
    folders = [
        record_run(tmp_path / "a-s0", "simclr+shards", 0),
        record_run(tmp_path / "a-s1", "simclr+shards", 1),
        record_run(tmp_path / "a-s2", "simclr+shards", 2, synthetic=several, epochs=9),
        record_run(tmp_path / "b-s0", "simclr+shards@m4", 0, synthetic=several),
        record_run(tmp_path / "b-s1", "simclr+shards@m4", 1, synthetic=several),
    ]
    comparison = compare_runs(folders, out=tmp_path)
    notes = [note for note in footnotes(comparison) if "seeds" in note]
    assert notes == [
        "simclr+shards: its runs differ in more than their seeds: a-s0 and a-s2 in pretrain.synthetic.candidates "
        "and 1 more; give one of the two another name, by pretrain.label."
    ]
    assert comparison.mixed[0].settings == ["synthetic.candidates", "epochs"]
    assert notes[0] in markdown_table(comparison)
    assert not compare_runs([folders[0], folders[1], *folders[3:]]).mixed


def test_a_labelled_run_is_compared_with_the_control_of_its_label_or_the_plain_one(tmp_path):
    names = ["simclr", "simclr+augmentation", "simclr+augmentation@m4", "simclr+shards@m4"]
    names.append("simclr+shards@m8")
    folders = [write_run(tmp_path / name, name, 0, 90.0, 80.0) for name in names]
    pairs = {(row.name, row.baseline) for row in compare_runs(folders).differences}
    assert {(name, other) for name, other in pairs if other != "simclr"} == {
        ("simclr+shards@m4", "simclr+augmentation@m4"),
        ("simclr+shards@m8", "simclr+augmentation"),
    }
