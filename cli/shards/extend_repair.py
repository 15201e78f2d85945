"""`clsp shards extend` and `repair`: composed of what `shards` offers and `generate` makes."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ...core import InputError, join_launch, read_launch
from ...shards import Anchor, AnchorsConfig, ImageSource, Plan, ShardSet, read_manifest
from ...shards.editing.extend import extension_plan, start_layer
from ...shards.editing.repair import (
    Damage,
    DamagedTar,
    damaged_files,
    rebuild,
    refetch,
    replacing_shard,
)
from ...shards.format.plan import follow_plan, read_plan
from ..options import parse_part, set_argument
from ..progress import ProgressReport, open_anchors, say, say_if_emulated

if TYPE_CHECKING:
    from accelerate import PartialState

    from ...generate import Sampler

model_option = click.option(
    "--diffusion",
    default="",
    metavar="DIR|HUB-ID",
    help="The diffusion model that made the set; default: the folder `diffusion` beside the set.",
)
latent_option = click.option(
    "--latent",
    default="",
    metavar="DIR|HUB-ID",
    help="The autoencoder of a latent model; default: beside its U-Net, or where it was when that was trained.",
)
source_option = click.option(
    "--recipe",
    "recipe_name",
    default=None,
    metavar="NAME|FILE",
    help="Recipe that says where the anchors come from; default: the source that the set names.",
)


class SetAnchors:
    """Gives the anchors that a set's candidates were made of, by position: from the set itself, or from its source.

    A set that holds none, or has lost a little of them to its codec, needs the source.
    """

    def __init__(self, shards: ShardSet):
        self.shards = shards
        self.are_exact = holds_anchors(shards.plan)

    def __getitem__(self, index: int) -> Anchor:
        if self.are_exact:
            return self.shards.anchor_record(index)
        return replace(self.shards.source_anchor(index), label=self.shards.label(index))


def holds_anchors(plan: Plan) -> bool:
    """Return True if a set of this plan holds its anchors to the last bit."""
    return plan.shards.include_anchors and plan.codec.is_lossless


class SourceAnchors:
    """Gives the anchors of a set whose own cannot be trusted: from its source, by the indices of its index."""

    def __init__(self, shards: ShardSet, anchors: ImageSource):
        self.shards = shards
        self.anchors = anchors

    def __getitem__(self, index: int) -> Anchor:
        return self.anchors[self.shards.source_index(index)]


def open_source(plan: Plan, recipe_name: str | None) -> ImageSource:
    """Return the source a set was made from: the recipe's, else the one that the plan names."""
    if recipe_name:
        from ..recipe import load_recipe

        return follow_plan(open_anchors(load_recipe(recipe_name).anchors), plan.source)

    source = plan.source
    resize: Any = source.resize
    skip: Any = "skip" if plan.selection else "fail"
    geometry: Any = {"size": source.size, "resize": resize}
    config = AnchorsConfig(
        path=source.name, split=source.split, limit=source.count, on_error=skip, **geometry
    )

    return follow_plan(open_anchors(config), source)


def recorded_sampler(plan: Plan, path: str, latent: str = "") -> "tuple[Sampler, PartialState]":
    """Return the sampler that a plan records, with the recorded model, at `path`, on its device; and the processes.

    Args:
        latent: where the autoencoder of a latent model is; empty: where the model says.
    """
    from pydantic import ValidationError

    from ...generate import Sampler, SamplerConfig, load_diffusion

    # The settings
    try:
        config = SamplerConfig.from_record(plan.sampler)
    except ValidationError as error:
        raise InputError(
            f"the candidates were not made by clsp ({plan.diffusion.origin}), so it cannot make more of them; "
            "add some with clsp shards merge, restore some with clsp shards repair --from URL"
        ) from error

    # The model, which must be the same one
    model = load_diffusion(path, plan.source.size, latent)
    if model.digest != plan.diffusion.digest:
        raise InputError(
            f"diffusion model {path} has the digest {model.digest}, the set was made by {plan.diffusion.origin} with "
            f"{plan.diffusion.digest}; give that model with --diffusion"
        )

    recorded = plan.diffusion.condition
    if model.condition is not None:
        model = replace(model, condition=model.condition.as_recorded(recorded))

    # On its device
    say_if_emulated("the set's sampler.dtype", config.dtype == "bfloat16")
    processes = join_launch()
    return Sampler(model, config, str(processes.device)), processes


def model_of(root: Path, given: str) -> str:
    """Return the model to use: `--diffusion`, else the one beside the set."""
    beside = root.absolute().parent / "diffusion"
    if not given and not (beside / "model_index.json").exists():
        raise InputError(
            f"no diffusion model in {beside}; give the one that made the set: --diffusion DIR or hub id"
        )
    return given or str(beside)


@click.command(epilog="Example: clsp shards extend runs/digits/shards --candidates 8")
@set_argument
@click.option(
    "--candidates", required=True, type=click.IntRange(1), help="The new total per anchor (K)."
)
@model_option
@latent_option
@source_option
@click.option(
    "--part",
    default="0/1",
    metavar="I/N",
    show_default=True,
    help="Make only part I of N (I from 0 to N-1), for job arrays.",
)
def extend(
    root: Path, candidates: int, diffusion: str, latent: str, recipe_name: str | None, part: str
) -> None:
    """Add candidates to a sealed set, as a new layer; resumable, and the old bytes stay."""
    read_launch()  # what is left over in the environment is refused before any work

    # The plan of the new layer
    parsed_part = parse_part(part)
    layer, plan = extension_plan(root, candidates)
    if plan is None:
        say(
            f"{root} has {candidates} candidates per anchor already, set ID {read_manifest(root).set_id}"
        )
        return

    # Anchors and sampler
    path = model_of(root, diffusion)
    base = read_plan(root)
    shards = ShardSet(root, None if holds_anchors(base) else open_source(base, recipe_name))
    sampler, processes = recorded_sampler(plan, path, latent)
    from ...generate import make_shards

    # The layer
    if processes.is_main_process:
        start_layer(root, layer, plan)

    processes.wait_for_everyone()
    rank = processes.process_index
    world_size = processes.num_processes

    with ProgressReport("extend", "anchors") as report:
        set_id = make_shards(
            root, plan, SetAnchors(shards), sampler, parsed_part, rank, world_size, report, layer
        )

    if set_id:
        print(
            f"shard set {root} has {candidates} candidates per anchor, set ID {set_id}", flush=True
        )
    elif world_size == 1:
        say(f"part {part} of {root} is done; the last part to finish seals the set")


@click.command(epilog="Example: clsp shards repair runs/digits/shards --from s3://bucket/digits")
@set_argument
@click.option(
    "--from",
    "url",
    default=None,
    metavar="URL",
    help="Fetch the bad files from this copy of the set.",
)
@model_option
@latent_option
@source_option
def repair(
    root: Path, url: str | None, diffusion: str, latent: str, recipe_name: str | None
) -> None:
    """Restore damaged files; only bytes that the manifest records are accepted."""
    read_launch()  # what is left over in the environment is refused before any work
    if url and diffusion:
        raise InputError("--from and --diffusion are both given; give one of them")

    with ProgressReport("check", "files") as report:
        damage = damaged_files(root, report)

    names = damage.names
    if not names:
        say(f"{root} has no damaged file, set ID {read_manifest(root).set_id}")
        return

    if url:
        refetch(root, names, url)
    else:
        _make_again(root, damage, diffusion, latent, recipe_name)

    print(
        f"{root}: {len(names)} files repaired ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
    )


def _make_again(
    root: Path, damage: Damage, diffusion: str, latent: str, recipe_name: str | None
) -> None:
    """Make bad tars again with the model, then the files that follow from them."""
    needed = [
        name for name in damage.derived if damage.tars and name == "layer-000.parquet"
    ]  # says which anchors

    if damage.lost or needed:
        names = ", ".join(damage.lost + needed)
        raise InputError(
            f"{root}: {names} cannot be made again; fetch them: clsp shards repair {root} --from URL"
        )

    if damage.tars:
        _make_tars(root, damage.tars, model_of(root, diffusion), latent, recipe_name)

    rebuild(root, damage.derived)


def _make_tars(
    root: Path, tars: list[DamagedTar], path: str, latent: str, recipe_name: str | None
) -> None:
    from ...generate import fill_shard

    shards = ShardSet(root, layers=["layer-000"])
    anchors = SourceAnchors(shards, open_source(shards.plan, recipe_name))
    samplers: dict[tuple[str, str], Any] = {}

    with ProgressReport("repair", "shards") as report:
        for done, damaged in enumerate(tars, start=1):
            plan = read_plan(root, damaged.layer)
            made_by = (plan.diffusion.digest, plan.sampler_text)
            if made_by not in samplers:
                samplers[made_by] = recorded_sampler(plan, path, latent)[0]

            with replacing_shard(root, damaged.name, plan, damaged.shard) as tar:
                fill_shard(tar, plan, damaged.shard, anchors, samplers[made_by])

            report(done, len(tars))
