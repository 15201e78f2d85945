"""Copy a sealed set to a dataset repository of the Hugging Face Hub, many files to a commit, the seal last."""

import hashlib
import re
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

from ...core import InputError, Report, WorkError, sha256_file
from ..format.layout import MANIFEST, PLAN
from ..format.manifest import FileEntry
from .copy_order import copy_order, files_to_copy
from .destination import check_extends
from .filesystem import Remote
from .verified_copy import DamagedError, fetch_manifest, retrying

FILES_PER_COMMIT = 100
_URL = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/(.+))?")


def push_to_hub(
    root: Path,
    url: str,
    report: Report | None = None,
    *,
    expect: str | None = None,
    api: Any = None,
) -> str:
    """Copy the sealed set at `root` to `hf://datasets/USER/NAME[@BRANCH][/FOLDER]` and return its set ID.

    Args:
        report: called with (files done, files in all).
        expect: the set ID that the set at `root` must have.
        api: in the place of `HfApi()`, whose credentials come from the environment.
    """
    place = _URL.fullmatch(url.rstrip("/"))
    if place is None:
        raise InputError(
            f"{url}: expected hf://datasets/USER/NAME, with @BRANCH for another branch than main"
        )

    manifest, content = fetch_manifest(Remote(root.absolute()), expect)
    files = files_to_copy(manifest, content)
    repository = _Repository(api or HfApi(), root, url, *place.groups())
    there = retrying(lambda: repository.sound(files), url)

    if there:
        retrying(lambda: check_extends(manifest, repository.manifest(there), url), url)
    else:
        retrying(repository.create, url)
        # A new branch begins as a copy of main.
        there = retrying(lambda: repository.sound(files), url)

    sound = {name for name, is_sound in there.items() if is_sound}
    done = len(sound)
    for names in batches(set(files), sound):
        retrying(lambda names=names: repository.commit({name: files[name] for name in names}), url)
        done += len(names)
        if report:
            report(done, len(files))

    return manifest.set_id


def batches(names: set[str], there: set[str]) -> list[list[str]]:
    """Return the files of each commit: the plan first, descriptions late, the manifest alone."""
    order = copy_order(names)
    in_order = [PLAN]
    for tar, record in order.shards:
        in_order += [tar, record]
    in_order += order.rest
    in_order += order.descriptions

    missing = [name for name in in_order if name not in there]
    commits = []
    for first in range(0, len(missing), FILES_PER_COMMIT):
        commits.append(missing[first : first + FILES_PER_COMMIT])

    if MANIFEST not in there:
        commits.append([MANIFEST])

    return commits


class _Repository:
    """Reads and writes a dataset repository, or a folder in one, as the place of a set."""

    def __init__(
        self, api: Any, root: Path, url: str, name: str, branch: str | None, folder: str | None
    ):
        self.api = api
        self.root = root
        self.url = url
        self.name = name
        self.branch = branch
        self.folder = f"{folder}/" if folder else ""
        self.place: dict[str, Any] = {"repo_type": "dataset", "revision": branch}

    def create(self) -> None:
        """Make repository and branch where there are none."""
        self.api.create_repo(self.name, repo_type="dataset", exist_ok=True)
        if self.branch:
            self.api.create_branch(
                self.name, branch=self.branch, repo_type="dataset", exist_ok=True
            )

    def sound(self, files: dict[str, FileEntry]) -> dict[str, bool]:
        """Return the files of the set that are there, each with True if its bytes are ours.

        Raises:
            InputError: another set, or something else, is there.
        """
        there = self._compare(files)
        if there and not there.get(PLAN):
            fault = (
                f"another set (its {PLAN} differs)"
                if PLAN in there
                else f"a {min(there)} that is of no shard set"
            )
            raise InputError(f"{self.url} holds {fault}; choose another repository or folder")

        # Tars never change, so other bytes under a tar's name are another run of the same plan.
        alien = [name for name, is_sound in there.items() if name.endswith(".tar") and not is_sound]
        if alien:
            raise InputError(
                f"{self.url} holds {alien[0]} of another run of this plan; choose another repository"
            )

        return there

    def manifest(self, there: dict[str, bool]) -> bytes | None:
        """Return the manifest that is there, unless it is ours."""
        if there.get(MANIFEST, True):
            return None
        path = self.api.hf_hub_download(self.name, self.folder + MANIFEST, **self.place)
        return Path(path).read_bytes()

    def commit(self, files: dict[str, FileEntry]) -> None:
        """Add the files in one commit and compare what arrived."""
        for name, entry in files.items():
            if sha256_file(self.root / name) != entry.sha256:
                raise WorkError(
                    f"{self.root / name}: its bytes are not those of the manifest; run: clsp shards verify"
                )

        operations = [
            CommitOperationAdd(self.folder + name, str(self.root / name)) for name in files
        ]
        self.api.create_commit(
            self.name, operations, commit_message=f"Add {len(files)} files", **self.place
        )
        arrived = self._compare(files)

        for name in files:
            if not arrived.get(name):
                raise DamagedError(f"{name} arrived with other bytes than those sent")

    def _compare(self, files: dict[str, FileEntry]) -> dict[str, bool]:
        found = {}
        names = [self.folder + name for name in files]
        try:
            for first in range(0, len(names), FILES_PER_COMMIT):
                infos = self.api.get_paths_info(
                    self.name, names[first : first + FILES_PER_COMMIT], **self.place
                )
                found |= {info.path.removeprefix(self.folder): info for info in infos}
        except (RepositoryNotFoundError, RevisionNotFoundError):
            return {}

        compared = {}
        for name, info in found.items():
            compared[name] = self._is_ours(info, self.root / name, files[name])

        return compared

    @staticmethod
    def _is_ours(info: Any, path: Path, entry: FileEntry) -> bool:
        if info.size != entry.bytes:
            return False
        if info.lfs is not None:
            return info.lfs.sha256 == entry.sha256

        # Small texts are plain Git blobs, named by the SHA-1 of a header and their bytes.
        blob = b"blob %d\0" % entry.bytes + path.read_bytes()
        return info.blob_id == hashlib.sha1(blob).hexdigest()
