"""Recipes: a TOML file, `--set` overrides, and the section models of the packages that use them."""

import codecs
import difflib
import tomllib
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from pydantic import Field, ValidationError

from ..core import InputError, Section, local_path, write_file
from ..core.run_name import LABEL_MARK
from ..evaluate import KnnConfig, LinearEvalConfig, TransferConfig
from ..generate import AutoencoderConfig, DiffusionConfig, SamplerConfig
from ..shards import AnchorsConfig, ShardsConfig
from ..train import METHODS, PretrainConfig


class ReproduceConfig(Section):
    """Names the runs that `clsp reproduce` compares."""

    runs: tuple[str, ...] = Field(
        default=("simclr", "simclr+augmentation", "simclr+shards"), min_length=1
    )
    """Names of runs: a method, or METHOD+SOURCE with `shards`, `augmentation` or `inflation`; with `+labels` behind it
    where labels choose the candidates; with `@LABEL` for one with settings of its own, in `[runs."NAME"]`; or `ddae`,
    the diffusion model's own features."""
    seeds: int = Field(default=3, ge=1)
    scores: dict[str, str] = Field(default={})
    """Scores that runs may choose candidates by (`pretrain.synthetic.scores`), each with its encoder: `unet` is the
    diffusion model itself, others are as `clsp shards score --encoder` takes them. Made before the runs."""
    transfer: bool = False
    """Evaluate every run by `clsp transfer`, too, on the sets of `[transfer]`."""


class Recipe(Section):
    """Holds a whole recipe; each section's model lives in the package that uses it.

    A section that joined later is left out of a resolved recipe while nobody uses it, so that older versions read it.
    """

    added: ClassVar[Mapping[str, Any]] = {"autoencoder": AutoencoderConfig()}

    anchors: AnchorsConfig = AnchorsConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    sampler: SamplerConfig = SamplerConfig()
    shards: ShardsConfig = ShardsConfig()
    pretrain: PretrainConfig = PretrainConfig()
    linear_eval: LinearEvalConfig = LinearEvalConfig()
    knn: KnnConfig = KnnConfig()
    transfer: TransferConfig = TransferConfig()
    reproduce: ReproduceConfig = ReproduceConfig()

    @property
    def content(self) -> bytes:
        """The resolved recipe as TOML, which `--recipe PATH` reads again."""
        unused = {name for name, value in self.added.items() if getattr(self, name) == value}
        values = self.model_dump(mode="json", exclude_none=True, exclude=unused)
        return tomli_w.dumps(values).encode()

    def save(self, path: Path) -> None:
        """Write the resolved recipe."""
        write_file(path, self.content)


def shipped_recipes() -> list[str]:
    """Return the names of the recipes that come with the package."""
    folder = resources.files("clsp.recipes")
    return sorted(
        entry.name.removesuffix(".toml")
        for entry in folder.iterdir()
        if entry.name.endswith(".toml")
    )


def load_recipe(
    name: str | None, overrides: Iterable[str] = (), profile: str = "", run: str = ""
) -> Recipe:
    """Load a shipped recipe by name or any by path, with `section.key=value` overrides (TOML values or plain strings).

    Without a name every key that is not overridden has its default. `NAME:PROFILE` asks for a profile, too.

    A file may have sections `[methods.NAME]`: keys of `[pretrain]` that hold when NAME is the method; and
    `[runs."NAME"]`: keys of `[pretrain]` that hold for the run of that name with a label, `simclr+shards@m2`; and
    `[profiles.NAME.SECTION]`: keys of any section that hold when the profile NAME is asked for. They are resolved here,
    before the overrides, so a resolved recipe has none.

    Args:
        run: the name of a run of `reproduce.runs`, whose settings hold over its method's.

    Raises:
        InputError: no such recipe, not TOML, an unknown key (naming the nearest one), a value out of range, or a run
            with a label that no settings go with.
    """
    # The file and one of its profiles
    if name and not profile:
        name, profile = _split_profile(name)
    values = _read(name) if name else {}
    title = f"recipe {name}" if name else "--set"
    profiles = values.pop("profiles", {})
    overrides = list(overrides)
    _check_tables(title, {"profiles": profiles})
    if profile and profile not in profiles:
        there = f"profiles {', '.join(profiles)}" if profiles else "no profiles"
        raise InputError(f"profile {profile}: {title} has {there}")

    _merge(values, profiles.get(profile, {}))

    # The settings per method, and the method that is chosen
    per_method = values.pop("methods", {})
    per_run = values.pop("runs", {})
    _check_tables(title, {**values, "methods": per_method, "runs": per_run, **per_run})
    _check_methods(title, per_method)
    default = PretrainConfig().method
    chosen: dict[str, Any] = {
        "pretrain": {"method": values.get("pretrain", {}).get("method", default)}
    }

    for override in overrides:
        _apply(chosen, override)

    # The method's settings, over them the run's, and over these the overrides
    _merge(values, {"pretrain": per_method.get(str(chosen["pretrain"]["method"]), {})})
    _merge(values, {"pretrain": _run_settings(title, per_run, run)})
    for override in overrides:
        _apply(values, override)

    try:
        try:
            return Recipe.model_validate(values)
        except ValidationError as error:
            if not _take_as_texts(values, overrides, error):
                raise
            return Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{title}: {_first_fault(error)}") from error


def _split_profile(name: str) -> tuple[str, str]:
    """Split `NAME:PROFILE`; what is a file as it stands has no profile."""
    before, colon, profile = name.rpartition(":")
    is_recipe = before in shipped_recipes() or Path(local_path(before)).is_file()
    if not colon or not is_recipe or Path(local_path(name)).exists():
        return name, ""

    return before, profile


def _run_settings(title: str, per_run: dict[str, Any], run: str) -> dict[str, Any]:
    """Return the settings of a run; one without a label has none of its own."""
    for name in per_run:
        if LABEL_MARK not in name:
            raise InputError(
                f'{title}: [runs."{name}"] has no label; expected a name such as {name}{LABEL_MARK}mine, by which runs '
                "of other settings are told apart"
            )

    if LABEL_MARK in run and run not in per_run:
        raise InputError(
            f"{title}: reproduce.runs names {run}, and no settings go with that label; add the section "
            f'[runs."{run}"], with keys of [pretrain]'
        )

    return per_run.get(run, {})


def _take_as_texts(values: dict[str, Any], overrides: list[str], error: ValidationError) -> bool:
    """Put texts in the place of overrides such as `anchors.path=2024` that TOML reads as numbers; False without any."""
    given = {}
    for override in overrides:
        key, _, text = override.partition("=")
        given[key.strip()] = text.strip()

    is_changed = False
    for fault in error.errors():
        key = ".".join(map(str, fault["loc"]))
        is_plain = not isinstance(fault["input"], list | dict)
        if fault["type"] == "string_type" and is_plain and key in given:
            _put(values, key.split("."), given[key])
            is_changed = True

    return is_changed


def _put(values: dict[str, Any], sections: list[str], value: Any) -> None:
    for section in sections[:-1]:
        values = values[section]
    values[sections[-1]] = value


def _read(name: str) -> dict[str, Any]:
    if name in shipped_recipes():
        path = resources.files("clsp.recipes").joinpath(f"{name}.toml")
        text = path.read_text(encoding="utf-8")
    elif Path(local_path(name)).is_file():
        text = _decoded(name, Path(local_path(name)).read_bytes())
    else:
        raise InputError(
            f"--recipe {name}: no such file or shipped recipe; shipped are {', '.join(shipped_recipes())}"
        )

    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"recipe {name} is not TOML: {error}") from error


def _decoded(name: str, content: bytes) -> str:
    """Return the text of a recipe's file; a byte-order mark of UTF-8, as Windows writes it, is no part of it.

    Raises:
        InputError: it is not in UTF-8, as TOML has to be.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        found = "UTF-16" if is_utf16 else f"not UTF-8 (byte {error.start})"
        raise InputError(f"recipe {name} is {found}; TOML is UTF-8: save it as UTF-8") from error


def _bare(text: str) -> Any:
    """Read a bare string, `photos`, or a list of them, `[cifar10, dtd]`."""
    if text.startswith("[") and text.endswith("]") and not set(text[1:-1]) & set("[]{}\"'"):
        return [word.strip() for word in text[1:-1].split(",") if word.strip()]
    return text


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    sections = key.strip().split(".")
    if not equals or len(sections) < 2 or not all(sections):
        raise InputError(
            f"--set {override}: expected SECTION.KEY=VALUE, for example --set sampler.steps=20"
        )

    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = _bare(text.strip())

    for section in sections[:-1]:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override}: {section} is a value, expected a section")

    values[sections[-1]] = value


def _check_tables(title: str, sections: dict[str, Any]) -> None:
    """Raise InputError if a section is no table."""
    for section, content in sections.items():
        if not isinstance(content, dict):
            raise InputError(f"{title}: {section} is {content!r}, expected a table")


def _check_methods(title: str, per_method: dict[str, Any]) -> None:
    """Raise InputError where the settings of a method are no table, or where there is no such method."""
    _check_tables(title, per_method)
    for method in per_method:
        if method not in METHODS:
            raise InputError(
                f"{title}: [methods.{method}] names no method; there are {', '.join(METHODS)}"
            )


def _merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put nested changes into nested values."""
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            _merge(values[key], change)
        else:
            values[key] = change


def _first_fault(error: ValidationError) -> str:
    fault = error.errors()[0]
    where = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(where, _known_keys(Recipe), n=1, cutoff=0)
        return f"unknown key {where}; the nearest is {nearest[0]}"

    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "value_error":
        return f"{where}: {message}"
    return f"{where} = {fault['input']!r}: {message}"


def _known_keys(model: type[Section], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            keys += [f"{prefix}{name}", *_known_keys(nested, f"{prefix}{name}.")]
        else:
            keys.append(f"{prefix}{name}")
    return keys
