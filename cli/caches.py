"""Give the libraries cache folders that can be written, before any of them is imported.

Without a home folder `datasets` and others would make one named `~` where the command runs; in one that cannot be
written they fail.
"""

import os
import stat
import tempfile
from pathlib import Path


def prepare_caches() -> None:
    """Set the environment so that caches go to a folder of the user's below the temporary one, if they have to."""
    home = Path("~").expanduser() if os.path.expanduser("~") != "~" else None  # noqa: PTH111
    if home is None:
        home = own_folder()
        os.environ["HOME"] = str(home)

    base = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    if not is_writable(base):
        own = own_folder()
        os.environ["XDG_CACHE_HOME"] = str(own)
        if os.access(
            base / "huggingface", os.R_OK | os.X_OK
        ):  # models and tokens are still read there
            os.environ.setdefault("HF_HOME", str(base / "huggingface"))
            os.environ.setdefault("HF_DATASETS_CACHE", str(own / "huggingface" / "datasets"))

    if not is_writable(Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")):
        os.environ.setdefault("MPLCONFIGDIR", str(own_folder() / "matplotlib"))
    if not is_writable(home / ".triton"):
        os.environ.setdefault("TRITON_CACHE_DIR", str(own_folder() / "triton"))


def is_writable(folder: Path) -> bool:
    """Return True if files can be made in a folder, or the folder itself can be made."""
    return os.access(existing_part(folder), os.W_OK | os.X_OK)


def existing_part(path: Path) -> Path:
    """Return a path, or the nearest of its parents, that exists."""
    while not os.access(path, os.F_OK) and path != path.parent:
        path = path.parent
    return path


def own_folder() -> Path:
    """Return a folder for caches in the temporary one, the same every time, that nobody else can write to."""
    folder = Path(tempfile.gettempdir()) / f"clsp-cache-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return folder

    return Path(tempfile.mkdtemp(prefix="clsp-cache-"))
