"""Slices of time, the driver's lock and what a folder may hold; the whole pipeline is in test_demo.py."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from clsp.cli.main import STOPPED, root
from clsp.cli.recipe import load_recipe
from clsp.cli.reproduce.command import _check_folder, _claim
from clsp.cli.reproduce.driver import Driver
from clsp.cli.reproduce.stages import Stage, parse_run, pipeline
from clsp.core import InputError, StopRequested, WorkError, holding
from conftest import SMALL_NETWORKS, settings

SMALL = {**SMALL_NETWORKS, "anchors.limit": 64, "shards.records": 16, "reproduce.seeds": 1}


def test_the_pipeline_has_a_stage_per_command_and_run(tmp_path):
    runs = load_recipe("cifar10").reproduce.runs
    stages = pipeline(tmp_path, runs, 2, 2)
    assert [stage.name for stage in stages[:5]] == [
        "diffusion",
        "shards-0",
        "shards-1",
        "verify",
        "preview",
    ]
    trained = [stage for stage in stages if stage.arguments[0] == "pretrain"]
    assert [stage.name for stage in trained] == [
        f"{name}-s{seed}" for seed in (0, 1) for name in runs
    ]
    moco = next(stage for stage in trained if stage.name == "mocov2plus+shards-s1")
    assert str(tmp_path / "recipes" / "mocov2plus.toml") in moco.arguments
    assert (
        "pretrain.synthetic.source=shards" in moco.arguments and "pretrain.seed=1" in moco.arguments
    )
    names = {stage.name for stage in stages}
    assert all(set(stage.after) <= names for stage in stages)


def test_the_diffusion_models_own_features_are_evaluated_once_and_not_trained(tmp_path):
    stages = pipeline(tmp_path, ("ddae", "simclr"), seeds=2, parts=1)
    own = [stage for stage in stages if "ddae" in stage.name]
    assert [stage.name for stage in own] == ["linear-eval-ddae-s0", "knn-ddae-s0"]
    for stage in own:
        assert f"unet:{tmp_path / 'diffusion'}@chosen" in stage.arguments
        assert stage.after == ("diffusion",)

    # It stands in the table, and the set is scored by a run that was trained
    named = {stage.name: stage for stage in stages}
    assert str(tmp_path / "pretrain" / "ddae-s0") in named["compare"].arguments
    assert str(tmp_path / "pretrain" / "simclr-s0") in named["score"].arguments

    # A model of others
    given = pipeline(tmp_path, ("ddae", "simclr"), 1, 1, diffusion="google/ddpm-cifar10-32")
    checkpoints = [stage.arguments for stage in given if stage.name == "knn-ddae-s0"]
    assert "unet:google/ddpm-cifar10-32@chosen" in checkpoints[0]


@pytest.mark.parametrize(
    "name",
    [
        "simclr+",
        "simclr+noise",
        "simclr+shards+shards",
        "simclr+labels",
        "simclr+augmentation+labels",
        "simclr+labels+shards",
        "simclr@m4+shards",
        "ddae@m4",
        "ddae+shards",
    ],
)
def test_names_of_runs_that_are_none(name):
    with pytest.raises(InputError, match="expected a method, METHOD"):
        parse_run(name)


BY_LABELS = {
    "pretrain.synthetic.scores": "probe",
    "pretrain.synthetic.measure": "agreement",
    "pretrain.synthetic.keep": 1,
}
ALLOWED = {**BY_LABELS, "pretrain.synthetic.allow_labels": "true"}


@pytest.mark.parametrize(
    ("run", "values", "message"),
    [
        ("simclr+shards+labels", BY_LABELS, "agreement uses labels, .*allow_labels=true"),
        (
            "simclr+shards",
            ALLOWED,
            r"simclr\+shards; .* by labels, so call it simclr\+shards\+labels",
        ),
        (
            "simclr+shards+labels",
            {},
            r"does not choose candidates by labels, so call it simclr\+shards",
        ),
    ],
)
def test_names_of_runs_say_whether_labels_choose_before_any_work(
    clsp, tmp_path, run, values, message
):
    names = ("--set", f'reproduce.runs=["simclr", "{run}"]')
    chosen = (*settings(values), *names)
    found = clsp("reproduce", "--recipe", "digits", *chosen, "--out", tmp_path / "out")
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert re.search(message, found.stderr), found.stderr
    assert not (tmp_path / "out").exists()


def test_a_run_by_labels_reads_shards_and_keeps_its_name(tmp_path):
    stages = pipeline(tmp_path, ["simclr+shards+labels"], 1, 1)
    (training,) = [stage for stage in stages if stage.arguments[0] == "pretrain"]
    assert training.name == "simclr+shards+labels-s0"
    assert "pretrain.synthetic.source=shards" in training.arguments


WITH_RUNS = """
[pretrain]
epochs = 14
synthetic = { weight = 0.3 }

[methods.mocov2plus]
epochs = 15

[runs."simclr+shards@m2"]
synthetic = { candidates = 2, loss = "multi_positive" }

[runs."mocov2plus+shards@best"]
epochs = 16
synthetic = { scores = "ddae", keep = 1 }

[reproduce]
runs = ["simclr", "simclr+shards", "simclr+shards@m2", "mocov2plus+shards@best"]
scores = { ddae = "unet" }
transfer = true
"""


def test_a_run_with_a_label_has_settings_of_its_own(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(WITH_RUNS, encoding="utf-8")
    plain = load_recipe(str(path), run="simclr+shards").pretrain
    several = load_recipe(str(path), ["pretrain.label=m2"], run="simclr+shards@m2").pretrain
    moco = ["pretrain.method=mocov2plus"]
    best = load_recipe(str(path), moco, run="mocov2plus+shards@best").pretrain

    assert (plain.synthetic.candidates, plain.synthetic.weight, plain.epochs) == (1, 0.3, 14)
    assert (several.synthetic.candidates, several.synthetic.weight) == (2, 0.3)
    assert several.run_name == "simclr+shards@m2"
    assert (best.epochs, best.synthetic.keep) == (16, 1)
    assert load_recipe(str(path), moco).pretrain.epochs == 15

    # What is resolved reads again, and is the same
    load_recipe(str(path), run="simclr+shards@m2").save(tmp_path / "resolved.toml")
    again = load_recipe(str(tmp_path / "resolved.toml"))
    assert again.pretrain.synthetic == several.synthetic


def test_scores_are_made_before_every_run_and_transfer_after_it(tmp_path):
    runs = ["simclr", "simclr+shards@best"]
    stages = pipeline(
        tmp_path, runs, 1, 1, scores={"ddae": "unet", "own": "runs/own"}, transfers=True
    )
    named = {stage.name: stage for stage in stages}

    own, others = named["score-ddae"].arguments, named["score-own"].arguments
    assert own[own.index("--encoder") + 1] == f"unet:{tmp_path / 'diffusion'}"
    assert others[others.index("--encoder") + 1] == "runs/own"
    for run in runs:
        assert named[f"{run}-s0"].after == ("verify", "score-ddae", "score-own")
        assert named[f"transfer-{run}-s0"].after == (f"{run}-s0",)
        assert f"transfer-{run}-s0" in named["compare"].after

    labelled = named["simclr+shards@best-s0"].arguments
    assert str(tmp_path / "recipes" / "simclr+shards@best.toml") in labelled


def test_the_profile_of_a_day_resolves_for_each_of_its_runs():
    profile = load_recipe("cifar10:day")
    assert profile.diffusion.condition == "features"
    chosen = []
    for name in profile.reproduce.runs:
        run = parse_run(name)
        changes = [f"pretrain.label={run.label}", f"pretrain.synthetic.source={run.source}"]
        if run.method != "ddae":
            resolved = load_recipe("cifar10", changes, profile="day", run=name).pretrain
            assert resolved.run_name == name
            if resolved.goes_by_measure:
                chosen.append(resolved.synthetic.scores)
    assert chosen == list(profile.reproduce.scores) == ["start"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            '"simclr", "simclr+shards"',
            '"simclr@mine"',
            r'no settings go with that label; add the section \[runs."simclr@mine"\]',
        ),
        ('[runs."simclr+shards@m2"]', '[runs."simclr+shards"]', "has no label"),
        ('scores = { ddae = "unet" }', "", "by the scores ddae, and reproduce.scores names none"),
        ("candidates = 2", "candidate = 2", "unknown key pretrain.synthetic.candidate"),
    ],
)
def test_runs_of_their_own_that_do_not_fit(clsp, tmp_path, old, new, message):
    path = tmp_path / "recipe.toml"
    assert old in WITH_RUNS
    path.write_text(WITH_RUNS.replace(old, new), encoding="utf-8")
    found = clsp("reproduce", "--recipe", path, "--out", tmp_path / "out")
    assert found.returncode == 2 and found.stderr.count("\n") == 1, found.stderr
    assert re.search(message, found.stderr), found.stderr
    assert not (tmp_path / "out").exists()


def test_work_begun_before_there_was_a_choice_goes_on(tmp_path):
    """The recipe that such a version resolved has the measure that was the default."""
    recipe = load_recipe("digits", settings_of({"anchors.limit": 64}))
    _claim(tmp_path, {tmp_path / "recipe.toml": recipe})
    path = tmp_path / "recipe.toml"
    text = path.read_text()
    assert 'measure = "margin"' in text
    earlier = text.replace('measure = "margin"', 'measure = "agreement"')
    earlier = earlier.replace('weight_map = "value"\n', "").replace("allow_labels = false\n", "")
    path.write_text(earlier)
    _check_folder(tmp_path, {path: recipe})
    with pytest.raises(InputError, match="the work of another recipe"):
        _check_folder(tmp_path, {path: load_recipe("digits", settings_of({"anchors.limit": 32}))})


def settings_of(values: dict) -> list[str]:
    return [f"{key}={value}" for key, value in values.items()]


class Sleeps(Driver):
    """Stages that sleep as long as their argument says, and end with 75 when they are stopped."""

    def _start(self, stage):
        process = multiprocessing.get_context("fork").Process(target=sleep, args=stage.arguments)
        process.start()
        return process


def sleep(seconds):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    time.sleep(float(seconds))


def test_a_slice_ends_in_time_and_the_next_one_goes_on(tmp_path):
    stages = [Stage("quick", ("0",)), Stage("long", ("60",)), Stage("later", ("0",), ("long",))]
    started = time.monotonic()
    with pytest.raises(StopRequested):
        Sleeps(tmp_path, stages, 2, seconds=2).run()
    assert time.monotonic() - started < 10
    again = Sleeps(tmp_path, stages, 2)
    assert again.finished == {"quick"} and 1 < again._recorded(stages[1])["seconds"] < 10
    changed = [stages[0], Stage("long", ("0",)), stages[2]]
    Sleeps(tmp_path, changed, 2).run()
    assert Sleeps(tmp_path, changed, 2).finished == {"quick", "long", "later"}


def test_a_slice_that_can_get_nowhere_says_so(tmp_path):
    with pytest.raises(InputError, match=r"--max-minutes 0\.01 is too short for one step of whole"):
        Sleeps(tmp_path, [Stage("whole", ("60",))], 1, seconds=0.6).run()


def test_what_came_before_the_driver_counts_into_the_slice(tmp_path):
    """The imports of the command, which take seconds."""
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"--max-minutes 1 is too short"):
        Sleeps(tmp_path, [Stage("whole", ("60",))], 1, 60, begun - 59).run()
    command = [
        "reproduce",
        "--recipe",
        "digits",
        "--max-minutes",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    with pytest.raises(InputError, match=r"--max-minutes 1 is too short for one step of diffusion"):
        root.main(command, standalone_mode=False, obj=begun - 60)
    assert time.monotonic() - begun < 40


def test_a_second_driver_is_kept_out(tmp_path):
    class Second(Sleeps):
        def _start_ready(self):
            super()._start_ready()
            with pytest.raises(InputError, match="another process works in"):
                Sleeps(tmp_path, self.stages, 1).run()

    Second(tmp_path, [Stage("quick", ("0.5",))], 1).run()


def test_the_recipe_of_a_command_that_is_kept_out_is_not_written(clsp, tmp_path):
    with holding(tmp_path):
        found = clsp("reproduce", "--recipe", "digits", "--seeds", "2", "--out", tmp_path)
    assert found.returncode == 2 and "another process works in" in found.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".clsp.lock"]


def test_a_set_that_fails_verification_ends_the_work_with_its_fault(shard_set, tmp_path):
    shutil.copytree(shard_set, tmp_path / "shards")
    tar = tmp_path / "shards" / "layer-000" / "shard-000001.tar"
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    stages = [
        Stage("verify", ("shards", "verify", str(tmp_path / "shards"), "--deep")),
        Stage("next", (), ("verify",)),
    ]
    driver = Driver(tmp_path, stages, 1)
    with pytest.raises(
        WorkError, match=r"stage verify: .*shard-000001.*SHA-256 differs.*\(log: .*verify\.log\)"
    ):
        driver.run()
    assert driver.finished == set()
    assert tar.read_bytes() == content


def test_a_stage_with_bad_input_or_without_memory_ends_the_work_with_its_reason(tmp_path):
    bad = Stage("bad", ("shards", "verify", str(tmp_path / "none")))
    with pytest.raises(InputError, match=r"stage bad: .*none.*\(log: "):
        Driver(tmp_path, [bad], 1).run()

    class OutOfMemory(Driver):
        def _start(self, stage):
            process = super()._start(stage)
            process.kill()
            return process

    with pytest.raises(
        WorkError, match=r"stage bad was killed \(exit code -9\); if memory ran out, use --jobs 1"
    ):
        OutOfMemory(tmp_path, [bad], 1).run()


@pytest.mark.slow
def test_a_stop_of_the_whole_process_group_waits_for_the_stages(tmp_path):
    out = tmp_path / "out"
    values = {**SMALL, "diffusion.steps": 100_000, "diffusion.checkpoint_steps": 10}
    command = [
        sys.executable,
        "-m",
        "clsp.cli",
        "reproduce",
        "--recipe",
        "digits",
        "--out",
        out,
        *settings(values),
    ]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.glob("diffusion/checkpoint*")):
        assert driver.poll() is None
        time.sleep(0.05)
    os.killpg(driver.pid, signal.SIGTERM)
    _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 75 and "resumable" in errors
    assert "resumable" in (out / "logs" / "diffusion.log").read_text()
    time.sleep(0.5)  # the process from which stages are forked ends when the driver has
    assert not [state for group, state in processes() if group == driver.pid and state != "Z"]


def processes():
    """(process group, state) of everything that runs."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            state, _, group = path.read_text().rpartition(")")[2].split()[:3]
            yield int(group), state


@pytest.mark.slow
def test_a_slice_too_short_for_the_real_thing_says_so_and_a_longer_one_goes_on(clsp, tmp_path):
    command = [
        "reproduce",
        "--recipe",
        "digits",
        *settings({**SMALL, "reproduce.runs": '["mocov2plus+shards"]'}),
    ]
    command += ["--set=pretrain.queue_size=32", "--out", tmp_path / "out"]
    short = clsp(*command, "--max-minutes", 0.001)
    assert (
        short.returncode == 2
        and "--max-minutes 0.001 is too short for one step of diffusion" in short.stderr
    )
    found = clsp(*command)
    assert found.returncode == 0, found.stderr
    costs = json.loads((tmp_path / "out" / "costs.json").read_text())
    assert {"diffusion", "mocov2plus+shards-s0", "knn-mocov2plus+shards-s0", "report"} <= set(costs)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"] for row in results["summary"]] == ["mocov2plus+shards"]
    refused = clsp(*command, "--set=sampler.steps=3")
    assert refused.returncode == 2 and "another recipe" in refused.stderr
    state = tmp_path / "out" / "reproduce.json"
    state.write_text('{"clsp": "0.0.1"}')
    refused = clsp(*command)
    assert refused.returncode == 2 and "was begun by clsp 0.0.1" in refused.stderr


def test_profiles_and_runs_that_do_not_exist_are_bad_input(clsp, tmp_path):
    found = clsp("reproduce", "--recipe", "cifar10", "--profile", "week", "--out", tmp_path / "out")
    assert (
        found.returncode == 2 and "recipe cifar10 has profiles paper, hour, minutes" in found.stderr
    )
    found = clsp(
        "reproduce",
        "--recipe",
        "digits",
        "--set=reproduce.runs=[simsiam]",
        "--out",
        tmp_path / "out",
    )
    assert (
        found.returncode == 2
        and "no method simsiam" in found.stderr
        and not (tmp_path / "out").exists()
    )


@pytest.mark.parametrize("profile", ["minutes", "hour", "paper"])
def test_profiles_resolve_for_every_run(profile):
    recipe = load_recipe("cifar10", (), profile)
    for method in {parse_run(name).method for name in recipe.reproduce.runs}:
        chosen = load_recipe("cifar10", [f"pretrain.method={method}"], profile).pretrain
        assert chosen.queue_size % chosen.batch_size == 0
