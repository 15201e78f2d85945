"""Read the manifest, which gives size and SHA-256 of every file of a sealed set. Its own SHA-256 is the set ID."""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Self

from pydantic import Field, JsonValue, model_validator

from ...core import InputError, canonical_json
from .layout import MANIFEST, PLAN, SAFE_NAME, layer_name
from .metadata import FORMAT, SCHEMA_VERSION, Frozen, parse_json, parse_metadata, read_json

MAX_NAME = 255


class FileEntry(Frozen):
    """Gives size and SHA-256 of a file of the set."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class Layer(Frozen):
    """Names a layer, which holds the candidates `first` … `first + candidates - 1` of every anchor."""

    name: str
    first: int
    candidates: int


class Manifest(Frozen):
    """Holds the content of `manifest.json`.

    >>> import tempfile
    >>> from clsp.shards.example import make_example_set
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = make_example_set(Path(folder)).manifest
    >>> manifest.candidates
    2
    >>> manifest.files["layer-000/shard-000000.tar"].bytes
    10240
    """

    format: str = FORMAT
    schema_version: str = SCHEMA_VERSION
    plan: str
    provenance: dict[str, JsonValue]
    layers: list[Layer] = Field(min_length=1)
    files: dict[str, FileEntry]

    @model_validator(mode="after")
    def _is_sane(self) -> Self:
        unsafe = [
            name
            for name in self.files
            if not SAFE_NAME.fullmatch(name) or name == MANIFEST or len(name) > MAX_NAME
        ]
        if unsafe:
            raise ValueError(f"{unsafe[0]!r} is not the name of a file inside a shard set")

        ends = 0
        for number, layer in enumerate(self.layers):
            if (layer.name, layer.first) != (layer_name(number), ends) or layer.candidates < 1:
                raise ValueError(
                    f"layer {layer.name!r} has first {layer.first}, expected {layer_name(number)}, {ends}"
                )
            ends += layer.candidates

        _ = self.set_id  # what JSON reads but cannot write (NaN, lone surrogates) is refused here
        return self

    @cached_property
    def set_id(self) -> str:
        """Return the SHA-256 of the manifest's file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def candidates(self) -> int:
        """Return K, the number of candidates per anchor over all layers."""
        return sum(layer.candidates for layer in self.layers)

    def to_bytes(self) -> bytes:
        """Return the bytes of `manifest.json`."""
        return canonical_json(self.model_dump(mode="json"))


def is_sealed(root: Path) -> bool:
    """Return True if the set at `root` has its manifest."""
    return (root / MANIFEST).exists()


def read_manifest(root: Path) -> Manifest:
    """Read the manifest of the sealed set at `root`.

    Raises:
        InputError: the set is not sealed, of another schema version, or its manifest is damaged.
    """
    if (root / PLAN).exists() and not is_sealed(root):
        raise InputError(
            f"{root} is not finished (no {MANIFEST}); run clsp shards make again to complete it"
        )

    return parse_metadata(Manifest, read_json(root / MANIFEST), str(root / MANIFEST))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Read a manifest from its bytes; raise InputError as `read_manifest` does, naming `where`."""
    return parse_metadata(Manifest, parse_json(content, where), where)
