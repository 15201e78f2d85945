"""The plan of a shard set: everything that determines its content, and nothing else."""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from .anchors import Anchors
from .config import ShardsConfig
from .durable import write_file
from .errors import InputError
from .folders import owner_of
from .layout import PLAN, image_fields

SCHEMA_VERSION = "1.0"
MAX_JSON_BYTES = 64 * 1024 * 1024


class Frozen(BaseModel):
    """A part of a set's metadata: immutable, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SourcePlan(Frozen):
    """The anchors: the name and split of the source, the geometry, and the digest of what it held."""

    name: str
    split: str
    licence: str
    count: int
    size: int
    resize: str
    digest: str


class DiffusionPlan(Frozen):
    """The diffusion model: where it came from and the digest of its configuration and weights."""

    origin: str
    digest: str


class Plan(Frozen):
    """`plan.json`: no time, no host. Its digest (SHA-256 of the file) names the plan."""

    format: Literal["clsp-shard-set"] = "clsp-shard-set"
    schema_version: str = SCHEMA_VERSION
    source: SourcePlan
    diffusion: DiffusionPlan
    sampler: dict[str, JsonValue]
    shards: ShardsConfig

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def count(self) -> int:
        """The number of anchors."""
        return self.source.count

    @property
    def shard_count(self) -> int:
        """The number of shards per layer."""
        return -(-self.source.count // self.shards.records)

    def shard_range(self, shard: int) -> range:
        """The anchor indices of a shard."""
        first = shard * self.shards.records
        return range(first, min(first + self.shards.records, self.source.count))

    @property
    def image_fields(self) -> list[str]:
        """Member endings of the images of a record of layer 0, in tar order."""
        return image_fields(0, self.shards.candidates, self.shards.codec, self.shards.include_anchors)

    def to_bytes(self) -> bytes:
        """The bytes of `plan.json`."""
        return canonical_json(self.model_dump(mode="json"))


def canonical_json(value: object) -> bytes:
    """JSON with sorted keys and a final newline: equal values give equal bytes."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """A JSON file of a set, bounded in size.

    Raises:
        InputError: it is missing, too large or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_JSON_BYTES}; not read")
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist; expected a shard set made by: clsp shards make") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); fetch the file again") from error


def source_plan(anchors: Anchors) -> SourcePlan:
    """The description of opened anchors; reads every image's bytes once for the digest."""
    return SourcePlan(
        name=anchors.source.name,
        split=anchors.config.split,
        licence=anchors.source.licence,
        count=len(anchors),
        size=anchors.size,
        resize=anchors.config.resize,
        digest=anchors.digest,
    )


def read_plan(root: Path) -> Plan:
    """The plan of the set at `root`.

    Raises:
        InputError: no set there, another schema version, or not a plan.
    """
    content = read_json(root / PLAN)
    check_schema(content, root / PLAN)
    try:
        return Plan.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{root / PLAN}: {first_fault(error)}; expected a plan of schema {SCHEMA_VERSION}") from error


def first_fault(error: ValidationError) -> str:
    """`field: what is wrong with it`, of the first field that does not validate."""
    fault = error.errors()[0]
    return f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"


def check_schema(content: Any, path: Path) -> None:
    """Refuse metadata of another format or major schema version."""
    if not isinstance(content, dict) or content.get("format") != "clsp-shard-set":
        raise InputError(f"{path} does not describe a clsp shard set; give the folder that clsp shards make wrote")
    found = str(content.get("schema_version"))
    if found.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise InputError(
            f"{path}: schema version {found}, this clsp reads {SCHEMA_VERSION.split('.')[0]}.x; "
            "install a matching clsp or make the set again"
        )


def check_plan(root: Path, plan: Plan) -> bool:
    """True if `root` already holds a set of this plan, False if it is free.

    Raises:
        InputError: another plan is there (naming what differs), or the folder holds something else.
    """
    found = owner_of(root, PLAN, "shard set")
    if found is not None and found != plan.to_bytes():
        differences = ", ".join(differing_fields(read_plan(root), plan)) or "the file's formatting"
        raise InputError(
            f"{root} was made by another plan ({differences}); choose another --out or restore those settings"
        )
    return found is not None


def write_plan(root: Path, plan: Plan) -> None:
    """Start or resume the set at `root`; raises as `check_plan`, and then touches nothing."""
    if not check_plan(root, plan):
        write_file(root / PLAN, plan.to_bytes())


def differing_fields(old: Plan, new: Plan) -> list[str]:
    """`section.key: old there, new here` for every field in which two plans differ."""
    rows = []
    old_fields, new_fields = old.model_dump(mode="json"), new.model_dump(mode="json")
    for section in new_fields:
        before, after = old_fields[section], new_fields[section]
        if not isinstance(after, dict):
            before, after = {"": before}, {"": after}
        for key in sorted(set(before) | set(after)):
            if before.get(key) != after.get(key):
                name = f"{section}.{key}".rstrip(".")
                rows.append(f"{name}: {before.get(key)} there, {after.get(key)} here")
    return rows
