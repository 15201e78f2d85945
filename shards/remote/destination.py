"""Check a place that a set is to be copied to: what is there must be this set, or an earlier state of it."""

import hashlib
import json
from collections.abc import Iterable

from ...core import InputError, owner_of
from ..format.layout import DESCRIPTIONS, MANIFEST, PLAN, shard_of
from ..format.manifest import Manifest, parse_manifest
from ..format.metadata import MAX_JSON_BYTES
from .filesystem import Remote


def check_claim(target: Remote, plan: bytes) -> bool:
    """Return True if a set of this plan is at `target`, False if nothing is.

    Raises:
        InputError: something else is there.
    """
    if target.local:
        found = owner_of(target.root, PLAN, "shard set")
    else:
        found = target.read(PLAN, MAX_JSON_BYTES)
        if found is None and not target.is_empty():
            raise InputError(
                f"{target.url} exists and is no shard set; choose an empty or new place"
            )

    if found is not None and found != plan:
        raise InputError(
            f"{target.url} holds another set (its {PLAN} differs); choose another place"
        )

    return found is not None


def check_extends(new: Manifest, old: bytes | None, where: str) -> None:
    """Raise InputError unless every file of the manifest `old` is in `new` as it was (layers and scores are added)."""
    if old is None:
        return

    files = parse_manifest(old, f"{where}/{MANIFEST}").files
    for name in sorted(files):
        if name not in DESCRIPTIONS and new.files.get(name) != files[name]:
            fault = "differs" if name in new.files else "is not in the set to copy"
            raise InputError(
                f"{where} holds a later or another state of this set ({name} {fault}); nothing was copied"
            )


def finished_shards(
    records: Iterable[tuple[str, bytes | None]], new: Manifest, where: str
) -> set[str]:
    """Return the commit records among those found at the target that are ours byte for byte.

    Raises:
        InputError: a record is of a tar with other bytes: another run of the same plan is being made there.
    """
    finished = set()
    for name, content in records:
        tar = new.files.get(shard_of(name) or "")
        if content is None or tar is None:
            continue
        if hashlib.sha256(content).hexdigest() == new.files[name].sha256:
            finished.add(name)
        elif _sealed_digest(content) not in (None, tar.sha256):
            raise InputError(
                f"{where} holds {shard_of(name)} of another run of this plan; choose another place"
            )

    return finished


def _sealed_digest(content: bytes) -> str | None:
    """Return the tar's SHA-256 in a commit record; None in a damaged one, which may be replaced."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    digest = record.get("sha256") if isinstance(record, dict) else None
    return digest if isinstance(digest, str) else None
