"""Copy sealed sets to and from any place that fsspec knows: resumable, verified on arrival, the seal last."""

import hashlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TypeVar

from ...core import InputError, Report, remove_temporaries
from ..format.layout import MANIFEST, PLAN, shard_of
from ..format.metadata import MAX_JSON_BYTES
from .copy_order import copy_order, files_to_copy
from .destination import check_claim, check_extends, finished_shards
from .filesystem import HTTP_PROTOCOLS, Remote
from .verified_copy import DamagedError, fetch_manifest, receive, retrying, send

Job = tuple[str, ...]
"""Names that are copied one after the other."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def push(
    root: Path,
    url: str,
    report: Report | None = None,
    workers: int = 8,
    *,
    expect: str | None = None,
) -> str:
    """Copy the sealed set at `root` to a URL or folder and return its set ID; run again, it goes on.

    Args:
        report: called with (files done, files in all).
        expect: the set ID that the set at `root` must have.

    Raises:
        InputError: no sealed set there, or the destination holds something else; nothing was touched.
        WorkError: a file did not arrive.
    """
    if url.split("://")[0] in HTTP_PROTOCOLS:
        raise InputError(
            f"{url}: nothing can be written there; give a folder or a URL such as s3://bucket/name"
        )

    if url.startswith("hf://"):
        from .hub_push import push_to_hub

        return push_to_hub(root, url, report, expect=expect)

    return _Transfer(Remote(root.absolute()), Remote(url), expect, workers).run(report)


def pull(
    url: str, root: Path, expect: str | None = None, report: Report | None = None, workers: int = 8
) -> str:
    """Copy the sealed set at a URL or folder to `root` and return its set ID; run again, it goes on.

    Args:
        expect: the set ID that the set must have.
        report: called with (files done, files in all).

    Raises:
        InputError: no sealed set there, or `root` holds something else; nothing was touched.
        WorkError: a file did not arrive.
    """
    return _Transfer(Remote(url), Remote(root.absolute()), expect, workers).run(report)


class _Transfer:
    """Copies a set from `source` to `target`, of which at least one is a local folder."""

    def __init__(self, source: Remote, target: Remote, expect: str | None, workers: int):
        self.source = source
        self.target = target
        self.workers = workers
        self.manifest, content = fetch_manifest(source, expect)
        self.files = files_to_copy(self.manifest, content)
        self.stop = threading.Event()

    def run(self, report: Report | None) -> str:
        """Look at what is there, then copy the rest."""
        plan = retrying(self._plan, self.source.where(PLAN))
        resumes = retrying(lambda: check_claim(self.target, plan), self.target.where(PLAN))
        finished = self._finished() if resumes else set()

        if self.target.local:
            remove_temporaries(self.target.root)

        done = 0

        def tell(job: Job) -> None:
            nonlocal done
            done += len(job)
            if report:
                report(done, len(self.files))

        for jobs in self.phases():
            self._each(jobs, lambda job: self._copy(job, resumes, finished), tell)

        return self.manifest.set_id

    def phases(self) -> list[list[Job]]:
        """Return the phases of the copy; the jobs of one run in parallel, the next begins when all are done."""
        order = copy_order(self.files)
        rest: list[Job] = [(name,) for name in order.rest]
        descriptions: list[Job] = [(name,) for name in order.descriptions]
        return [[(PLAN,)], [*order.shards], rest, descriptions, [(MANIFEST,)]]

    def _plan(self) -> bytes:
        content = self.source.read(PLAN, MAX_JSON_BYTES) or b""
        if hashlib.sha256(content).hexdigest() != self.manifest.plan:
            raise DamagedError("its bytes are not those of the manifest")
        return content

    def _finished(self) -> set[str]:
        """Return the commit records at the target that are ours; raise InputError if its state is not ours."""
        target = self.target
        limit = MAX_JSON_BYTES
        old = retrying(lambda: target.read(MANIFEST, limit), target.where(MANIFEST))
        check_extends(self.manifest, old, target.url)
        names = [name for name in self.files if shard_of(name)]

        def read(name: str) -> bytes | None:
            return retrying(lambda: target.read(name, limit), target.where(name), self.stop)

        return finished_shards(self._each(names, read), self.manifest, target.url)

    def _copy(self, job: Job, resumes: bool, finished: set[str]) -> None:
        if not self.target.local and self._is_finished(job, finished):
            return

        remote = self.source if self.target.local else self.target
        for name in job:
            where = remote.where(name)
            retrying(lambda name=name: self._copy_file(name, resumes), where, self.stop)

    def _is_finished(self, job: Job, finished: set[str]) -> bool:
        """Return True if the shard's commit record is there, which was written after the tar had been read back."""
        if job[-1] not in finished:
            return False
        tar = job[0]
        size = retrying(lambda: self.target.size(tar), self.target.where(tar), self.stop)
        return size == self.files[tar].bytes

    def _copy_file(self, name: str, resumes: bool) -> None:
        entry = self.files[name]
        if resumes and self.target.holds(name, entry):
            return
        if self.target.local:
            receive(self.source, name, entry, self.target.root / name, self.stop)
        else:
            send(self.source.root / name, self.target, name, entry, self.stop)

    def _each(
        self,
        items: list[Item],
        work: Callable[[Item], Result],
        tell: Callable[[Item], None] = lambda _: None,
    ) -> list[tuple[Item, Result]]:
        """Work on every item in parallel; at the first error, or Ctrl-C, nothing more begins and all come to rest."""
        pool = ThreadPoolExecutor(self.workers, "transfer")
        results = []
        try:
            futures = {pool.submit(work, item): item for item in items}
            for future in as_completed(futures):
                results.append((futures[future], future.result()))
                tell(futures[future])
        except BaseException:
            self.stop.set()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

        return results
