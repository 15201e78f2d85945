"""The pace of a set in work, from commit records written by hand; and the log."""

import json
import multiprocessing

import pytest
from clsp.shards.format.commits import commit_records
from clsp.shards.format.event_log import log_event, log_path, measure_pace, read_log
from clsp.shards.format.layout import commit_path
from clsp.shards.format.plan import read_plan


def rewrite(root, shard, **made):
    path = commit_path(root, 0, shard)
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "made": {**content["made"], **made}}))


def test_pace_of_two_processes(make_set, tmp_path):
    """Ten shards of four anchors, K = 3: two processes took 6 s for each of their three shards, side by side."""
    root = make_set(tmp_path / "set", records=4)
    plan = read_plan(root)
    for shard in range(6):
        rewrite(root, shard, seconds=6.0, finished=f"2026-01-01T00:00:{6 * (shard // 2 + 1):02d}Z")
    midnight = 1767225600.0
    pace = measure_pace(plan, commit_records(root, plan)[:6], now=midnight + 30)
    assert pace.per_process == pytest.approx(2.0)  # 12 candidates in 6 s
    assert pace.overall == pytest.approx(4.0)  # 72 in 18 s
    assert pace.left == pytest.approx(16 * 3 / 4.0) and pace.since_last == pytest.approx(12)


@pytest.mark.parametrize(("processes", "shards"), [(1, 6), (2, 10)])
def test_a_night_without_work_does_not_slow_the_pace(make_set, tmp_path, processes, shards):
    """6 s a shard, three shards of each process in the evening, the others in the morning."""
    root = make_set(tmp_path / "set", records=4)
    plan, evening = read_plan(root), 3 * processes
    for shard in range(shards):
        day, turn = shard // evening + 1, shard % evening // processes + 1
        rewrite(root, shard, seconds=6.0, finished=f"2026-01-{day:02d}T00:00:{6 * turn:02d}Z")
    pace = measure_pace(plan, commit_records(root, plan)[:shards])
    assert pace.per_process == pytest.approx(2.0) and pace.overall == pytest.approx(2.0 * processes)
    assert pace.left == pytest.approx((40 - 4 * shards) * 3 / pace.overall)


@pytest.fixture(scope="module")
def forty_shards(make_set, tmp_path_factory):
    """A set of forty shards; its commit records are written anew by each test."""
    return make_set(tmp_path_factory.mktemp("forty") / "set", records=1)


@pytest.mark.parametrize("seconds", [0.3, 0.75, 1.5, 2.5])
def test_shards_that_end_within_a_second_are_not_counted_as_faster(forty_shards, seconds):
    """One process without a break; the ends that are written down are whole seconds."""
    root = forty_shards
    plan = read_plan(root)
    for shard in range(40):
        minute, second = divmod(int((shard + 1) * seconds), 60)
        rewrite(root, shard, seconds=seconds, finished=f"2026-01-01T00:{minute:02d}:{second:02d}Z")
    pace = measure_pace(plan, commit_records(root, plan))
    assert pace.per_process == pytest.approx(3 / seconds) and pace.overall == pytest.approx(
        3 / seconds, rel=0.1
    )


def test_no_pace_without_times(make_set, tmp_path):
    root = make_set(tmp_path / "set")
    for shard in range(3):
        rewrite(root, shard, seconds="long")
    plan = read_plan(root)
    assert measure_pace(plan, commit_records(root, plan)) is None
    assert measure_pace(plan, []) is None


def write_lines(root, number):
    for line in range(200):
        log_event(root, "shard", writer=number, line=line, text="ü" * 50)


def test_lines_of_several_processes_never_mix(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=write_lines, args=(tmp_path / "set", number)) for number in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    events = read_log(tmp_path / "set")
    found = [
        [event["line"] for event in events if event["writer"] == number] for number in range(3)
    ]
    assert found == [list(range(200))] * 3
    with log_path(tmp_path / "set").open("a") as file:
        file.write('{"event": "cut sho')
    assert len(read_log(tmp_path / "set")) == 600 and not (tmp_path / "set").exists()
