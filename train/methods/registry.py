"""Methods by name. The names are those of this folder's files, so they are known without importing torch."""

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import InputError
from ..config import PretrainConfig

if TYPE_CHECKING:
    from .base import Method

SHARED = {"__init__", "base", "momentum", "queue", "registry"}
"""Files of this folder that are no method."""

SHIPPED = {path.stem for path in Path(__file__).parent.glob("*.py")} - SHARED
"""The methods of this folder, each the name of its file."""

_registered: dict[str, type["Method"]] = {}


def register(name: str) -> Callable[[type["Method"]], type["Method"]]:
    """Make a method known under `name`.

    A method of this folder has the name of its file, and needs no other line anywhere; one of your own is known from
    the import of its module on.
    """

    def add(method: type["Method"]) -> type["Method"]:
        _registered[name] = method
        return method

    return add


class _Methods(Mapping[str, type["Method"]]):
    """Maps names to classes; a class is imported when it is asked for."""

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(SHIPPED | set(_registered)))

    def __len__(self) -> int:
        return len(SHIPPED | set(_registered))

    def __contains__(self, name: object) -> bool:
        return name in SHIPPED or name in _registered

    def __getitem__(self, name: str) -> type["Method"]:
        if name in SHIPPED and name not in _registered:
            import_module(f".{name}", __package__)
        return _registered[name]


METHODS: Mapping[str, type["Method"]] = _Methods()


def method_class(config: PretrainConfig) -> type["Method"]:
    """Return the class of the recipe's method.

    Raises:
        InputError: there is no method of that name.
    """
    if config.method not in METHODS:
        known = ", ".join(METHODS)
        raise InputError(f"pretrain.method: no method {config.method!r}; there are {known}")
    return METHODS[config.method]


def build_method(config: PretrainConfig) -> "Method":
    """Return the recipe's method with random weights.

    Raises:
        InputError: there is no method of that name, or a setting does not go with it.
    """
    method = method_class(config)
    if config.decoupled and not method.has_decoupled_loss:
        raise InputError(
            f"pretrain.decoupled is an option of simclr, and pretrain.method = {config.method}; leave it out, or put "
            "it into [methods.simclr]"
        )

    return method(config)
