import os
import socket
import subprocess
import sys

import pytest
from clsp.core import remove_temporaries, replacing, write_file


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    write_file(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as file:
        file.write(b"new")
        raise RuntimeError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_only_dead_writers_of_this_machine_lose_their_temporaries(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"],
        capture_output=True,
        text=True,
        check=True,
    )
    host, dead = socket.gethostname(), process.stdout.strip()
    for name in (
        f".a.{host}-{dead}-00ff.tmp",
        f".a.{host}-{os.getpid()}-00ff.tmp",
        f".a.elsewhere-{dead}-00ff.tmp",
    ):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f".a.elsewhere-{dead}-00ff.tmp",
        f".a.{host}-{os.getpid()}-00ff.tmp",
    }
