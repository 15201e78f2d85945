import errno
import os
import resource
import socket
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from clsp.core import remove_temporaries, replacing, saving, write_file


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path):
    write_file(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a") as file:
        file.write(b"new")
        raise RuntimeError
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


@pytest.mark.parametrize("library", ["torch", "python"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, library):
    """torch answers a disk that is full with an error of its own, which names neither file nor reason."""
    write_file(tmp_path / "a", b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with (
            pytest.raises(OSError, match="File too large") as found,
            replacing(tmp_path / "a") as file,
        ):
            if library == "torch":
                torch.save(torch.zeros(10_000), file)
            else:
                file.write(bytes(40_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert found.value.filename == str(tmp_path / "a")
    assert found.value.errno == errno.EFBIG
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"old")]


def test_files_that_a_library_saves_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with saving(tmp_path / "new"):
            (tmp_path / "new" / "unet").mkdir(parents=True)
            tensors = {"a": torch.zeros(1)}
            safetensors.torch.save_file(tensors, tmp_path / "new" / "unet" / "x.safetensors")
    finally:
        os.umask(before)
    path = tmp_path / "new" / "unet" / "x.safetensors"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["unet"]


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
