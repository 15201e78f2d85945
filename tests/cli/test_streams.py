"""How the command was started: without an output, with a reader that leaves, in a locale that lacks characters."""

import os
import subprocess
import sys

import pytest
from PIL import Image

CLSP = [sys.executable, "-m", "clsp.cli"]
ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}


def test_a_reader_that_has_gone_ends_the_command_without_a_word():
    read, write = os.pipe()
    os.close(read)
    try:
        command = [*CLSP, "shards", "--help"]
        found = subprocess.run(
            command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False
        )
    finally:
        os.close(write)
    assert (found.returncode, found.stderr) == (141, b"")


def test_a_broken_pipe_of_another_kind_is_no_quiet_end(clsp, monkeypatch, tmp_path):
    def broken(*arguments, **options):
        raise BrokenPipeError("a worker has died")

    monkeypatch.setattr("clsp.cli.shards.status_info_preview_verify.verify_set", broken)
    with pytest.raises(BrokenPipeError, match="a worker has died"):
        clsp("shards", "verify", tmp_path)


@pytest.mark.slow
def test_closed_outputs_do_not_end_up_in_files(shard_set, tmp_path):
    command = [*CLSP, "shards", "preview", str(shard_set), "--out", str(tmp_path / "sheet.png")]
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command]
    assert subprocess.run(closed, timeout=120, check=False).returncode == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.verify()
    assert [path.name for path in tmp_path.iterdir()] == ["sheet.png"]


def test_a_locale_without_a_character_prints_another():
    code = r"""
from clsp.cli.streams import prepare_streams
from clsp.cli.report import _print_table
from clsp.cli.progress import ProgressReport, say

prepare_streams()
_print_table("\xb1", ["n\u2026"], [["77.1 \xb1 0.5"]])
say("\u03bb")
ProgressReport("gr\xf6\xdfe", "images")(1, 1)
"""
    environment = {**os.environ, **ASCII}
    found = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert rb"77.1 \xb1 0.5" in found.stdout and rb"\u03bb" in found.stdout
    helped = subprocess.run(
        [*CLSP, "compare", "--help"], env=environment, capture_output=True, timeout=60, check=False
    )
    assert helped.returncode == 0 and b"over seeds per run name" in helped.stdout, helped.stderr


def test_a_name_that_the_locale_cannot_read_is_refused(clsp):
    found = clsp("shards", "verify", os.fsdecode(b"/data/pr\xc3\xbf\xff"))
    assert found.returncode == 2 and found.stderr.count("\n") == 1
    assert "no text in this locale's encoding" in found.stderr and "LC_ALL=C.UTF-8" in found.stderr
