"""Progress in a log: when a line is printed, and what it says of the time that is left."""

import re

from clsp.cli.progress import ProgressReport


def test_the_time_left_goes_by_the_pace_since_the_first_step(capsys, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    with ProgressReport("diffusion", "steps") as report:
        clock[0] += 600  # what comes before the first step
        report(51, 1051)  # the first step of a training that was resumed
        for done in range(52, 252):
            clock[0] += 0.1
            report(done, 1051, {"loss": 0.5})
        clock[0] += 80
        report(1051, 1051)

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "diffusion: 51/1051 steps"
    assert re.fullmatch(r"diffusion: 20[12]/1051 steps, 85 s left loss 0\.5", lines[1])
    assert lines[2:] == ["diffusion: 1051/1051 steps in 700 s"]


def test_where_the_total_is_not_known_no_time_is_told(capsys, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])

    with ProgressReport("looking for images", "files") as report:
        for done in (100, 200):
            clock[0] += 20
            report(done, 0)

    lines = capsys.readouterr().out.splitlines()
    assert lines == ["looking for images: 100 files", "looking for images: 200 files"]
