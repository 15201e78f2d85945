"""Users without a home folder, or with one that cannot be written."""

import os
import pwd
import stat
import tempfile
from pathlib import Path

import pytest
from clsp.cli.caches import prepare_caches
from clsp.core import InputError
from clsp.shards.remote.cache import cache_folder

VARIABLES = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_DATASETS_CACHE")
VARIABLES = (*VARIABLES, "MPLCONFIGDIR", "TRITON_CACHE_DIR", "CLSP_CACHE")


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """No variables of the user's, and a temporary folder of the test's own; the environment is put back."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that it is put back behind what the code sets
        monkeypatch.delenv(name)
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture
def nobody(monkeypatch):
    """A user who is in no list of users."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert os.path.expanduser("~") == "~"  # noqa: PTH111


def own(tmp_path) -> Path:
    return tmp_path / "temporary" / f"clsp-cache-{os.getuid()}"


def test_a_user_without_a_home_folder_gets_one_of_their_own(nobody, tmp_path):
    prepare_caches()
    assert Path.home() == own(tmp_path)
    assert cache_folder().is_relative_to(own(tmp_path))
    assert stat.S_IMODE(own(tmp_path).stat().st_mode) == 0o700


def test_a_folder_that_others_can_write_to_is_not_taken(nobody, tmp_path):
    own(tmp_path).mkdir()
    own(tmp_path).chmod(0o777)
    prepare_caches()
    assert Path.home() != own(tmp_path) and Path.home().parent == own(tmp_path).parent


def test_a_home_folder_that_cannot_be_written_keeps_its_name(monkeypatch, tmp_path):
    (tmp_path / "home").write_text("a file, which even root cannot write into")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    prepare_caches()
    assert os.environ["HOME"] == str(tmp_path / "home")
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR"):
        assert Path(os.environ[name]).is_relative_to(own(tmp_path))
    assert cache_folder().is_relative_to(own(tmp_path))


def test_a_home_folder_that_can_be_written_is_left_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "new" / "home"))
    before = dict(os.environ)
    prepare_caches()
    assert dict(os.environ) == before and not any((tmp_path / "temporary").iterdir())


def test_without_a_home_folder_python_code_is_told_what_to_set(nobody):
    with pytest.raises(InputError, match="set CLSP_CACHE"):
        cache_folder()
