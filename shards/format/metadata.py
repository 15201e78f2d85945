"""Read the JSON files of a set: bounded in size, and of the schema versions that are known."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from ...core import InputError, first_fault

FORMAT = "clsp-shard-set"
SCHEMA_VERSION = "1.0"
MAX_JSON_BYTES = 64 * 1024 * 1024


class Frozen(BaseModel):
    """Holds a part of a set's metadata: immutable; fields that a later minor version added are kept as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Sparse(Frozen):
    """Holds a part of which the fields that say nothing, None, are left out of the file, as older versions had it."""

    @model_serializer(mode="wrap")
    def _leave_out_what_says_nothing(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in dump(self).items() if value is not None}


Metadata = TypeVar("Metadata", bound=Frozen)


def read_json(path: Path) -> Any:
    """Read a JSON file of a set, bounded in size.

    Raises:
        InputError: it is missing, too large or not JSON.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise InputError(
                f"{path}: {path.stat().st_size} bytes, expected at most {MAX_JSON_BYTES}; not read"
            )
        return parse_json(path.read_bytes(), str(path))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(
            f"{path} does not exist; expected a shard set made by: clsp shards make"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); expected a file of a shard set"
        ) from error


def parse_json(content: bytes, where: str) -> Any:
    """Read JSON of a set from bytes.

    Raises:
        InputError: it is not JSON.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where} is not JSON ({error}); fetch the file again") from error


def parse_metadata(model: type[Metadata], content: Any, where: str) -> Metadata:
    """Turn the content of a JSON file into a plan or manifest.

    Raises:
        InputError: another format, another major schema version, a codec that is not known, or a field that is missing
            or wrong.
    """
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(
            f"{where} does not describe a clsp shard set; give the folder that clsp shards make wrote"
        )

    found = str(content.get("schema_version"))
    if found.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise InputError(
            f"{where}: schema version {found}, this clsp reads {SCHEMA_VERSION.split('.')[0]}.x; "
            "install a matching clsp or make the set again"
        )

    try:
        return model.model_validate(content)
    except InputError as error:  # the model's own, which says what to do
        raise InputError(f"{where}: {error}") from error
    except (ValidationError, RecursionError) as error:
        fault = first_fault(error) if isinstance(error, ValidationError) else "nested too deeply"
        raise InputError(
            f"{where}: {fault}; expected schema {SCHEMA_VERSION}; fetch the file again"
        ) from error
