"""`clsp shards plan` and `clsp shards make`."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ...core import (
    InputError,
    computes_bf16,
    join_launch,
    launched_rank,
    read_launch,
    remove_temporaries,
)
from ...shards import ImageSource, Plan, ShardsConfig, screened
from ...shards.format.layout import PLAN
from ...shards.format.plan import follow_plan, read_plan
from ...shards.sources.digest_cache import remember_digest
from ...shards.sources.enlarging import why_enlarged
from ...shards.sources.left_out import write_left_out
from ...shards.sources.survey import Depth
from ..images import enlarging_lines, summary_of, warnings_of
from ..options import PATH, check_option, out_option, parse_part, recipe_options
from ..progress import ProgressReport, open_anchors, say, say_if_emulated
from ..recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from ...generate import DiffusionModel, SamplerConfig

diffusion_option = click.option(
    "--diffusion",
    default="",
    metavar="DIR|HUB-ID",
    help="The diffusion model; default: the recipe's diffusion.path, else the folder `diffusion` beside the set.",
)


def diffusion_path(recipe: Recipe, given: str, out: Path | None) -> str:
    """Return the model to use: `--diffusion`, else the recipe's, else the one beside the set."""
    path = (
        given or recipe.diffusion.path or (str(out.absolute().parent / "diffusion") if out else "")
    )
    if not path:
        raise InputError(
            "no diffusion model: the recipe's diffusion.path is empty; give --diffusion DIR or hub id"
        )
    if not given and not recipe.diffusion.path and not (Path(path) / "model_index.json").exists():
        raise InputError(
            f"no finished diffusion model in {path}; run first: clsp diffusion train --recipe … --out {path}"
        )

    return path


def beside(out: Path, what: str) -> Path:
    """Return the file beside a set or a model that says something of its anchors.

    Args:
        what: `skipped`, those that do not decode; `left_out`, files that are not taken; `source`, what the source is.
    """
    return out.absolute().with_name(f"{out.absolute().name}.{what}.json")


def readable_anchors(
    anchors: ImageSource, out: Path | None = None, depth: Depth = "bytes"
) -> ImageSource:
    """Say what the anchors are; with `anchors.on_error = "skip"` leave out those that do not decode, and list them.

    Args:
        out: the set or model that is made of them; what is found is kept beside it.
        depth: how much of each is looked at; `bytes` gives the source's digest.

    Raises:
        InputError: a file is no image, and `anchors.on_error` is `fail`.
    """
    # What was taken for what
    for line in summary_of(anchors):
        say(line)

    left_out = anchors.source.left_out
    if out and left_out and launched_rank() == 0:
        write_left_out(beside(out, "left_out"), left_out, anchors.source.name)

    # The images themselves, each read once
    with ProgressReport("looking at the anchors", "anchors") as report:
        readable = screened(anchors, beside(out, "skipped") if out else None, report)
        if out:
            remember_digest(readable, beside(out, "source"), report)
        elif readable.known_findings is None:
            readable.look(depth, report)
        faults = list(readable.findings.unreadable.values())

    unfit = readable.why_unfit()
    if unfit and anchors.config.on_error == "fail":
        raise InputError(unfit)
    if faults and anchors.config.on_error == "fail":
        more = f" (and {len(faults) - 1} more; clsp images lists them)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{more}")

    # Images too small for the size that is wanted; whoever only embeds them always enlarges them
    lines = warnings_of(readable)
    if depth != "header":
        refuse_enlarged(readable)
        lines += enlarging_lines(readable)

    for line in lines:
        say(line)

    skipped = len(anchors) - len(readable)
    if skipped:
        listed = f", listed in {beside(out, 'skipped')}" if out else ""
        say(f"skipped {skipped} of {len(anchors)} anchors that do not decode{listed}")
    return readable


def refuse_enlarged(anchors: ImageSource) -> None:
    """Raise InputError where most anchors would be enlarged and the recipe does not say that they may be."""
    reason = why_enlarged(anchors)
    if reason:
        raise InputError(reason)


def resolved_sampler(recipe: Recipe, out: Path | None) -> "SamplerConfig":
    """Return the recipe's sampler with its `auto` dtype decided: by the set that is there, else by the device."""
    if recipe.sampler.dtype != "auto":
        return recipe.sampler
    begun = read_plan(out).sampler.get("dtype") if out and (out / PLAN).exists() else None
    return recipe.sampler.decided(begun == "bfloat16" if begun else computes_bf16())


@click.command(
    epilog="Example: clsp shards plan --recipe cifar10 --diffusion google/ddpm-cifar10-32"
)
@recipe_options
@diffusion_option
@click.option(
    "--out",
    type=PATH,
    default=None,
    help="Also check that this folder is new, or holds a set of the same plan.",
)
@click.option(
    "--gpus",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Devices like this one that share the work.",
)
@click.option(
    "--seconds", default=10.0, show_default=True, help="Seconds to measure the device for."
)
def plan(
    recipe_name: str,
    overrides: tuple[str, ...],
    diffusion: str,
    out: Path | None,
    gpus: int,
    seconds: float,
) -> None:
    """Estimate what a set costs: shards, images, bytes, and hours on this device after a short calibration."""
    # Recipe and anchors
    recipe = load_recipe(recipe_name, overrides)
    path = diffusion_path(recipe, diffusion, out)
    anchors = readable_anchors(open_anchors(recipe.anchors), out)
    config = resolved_sampler(recipe, out)
    from ...generate import Sampler, estimate, load_diffusion, make_plan
    from ...shards.format.plan import check_plan

    # The plan
    model = _settled(load_diffusion(path, anchors.size, recipe.diffusion.latent), recipe)
    _check_classes(model, anchors)
    the_plan = make_plan(anchors, model, config, recipe.shards)
    if out:
        check_plan(out, the_plan)

    # What it costs; in the last round some devices are idle
    figures = estimate(the_plan, anchors, Sampler(model, config, _device()), seconds)
    rounds = -(-the_plan.shard_count // gpus)
    hours = figures.seconds / 3600 / the_plan.shard_count * rounds
    idle = 100 * (1 - the_plan.shard_count / (rounds * gpus))

    say(f"anchors     {the_plan.count} of {the_plan.source.name}, {anchors.size}x{anchors.size}")
    say(
        f"candidates  {the_plan.count * recipe.shards.candidates} ({recipe.shards.candidates} each)"
    )
    say(f"shards      {the_plan.shard_count} of {records_text(the_plan, recipe.shards)}")
    say(f"bytes       about {figures.bytes / 1e9:.3g} GB")
    say(
        f"time        about {hours:.3g} hours on {gpus} x {figures.device} ({figures.seconds / 3600:.3g} device hours)"
    )

    if gpus > 1:
        say(f"idle        {idle:.2g} % of the devices' time, while the last shards are made")


@click.command(epilog="Example: clsp shards make --recipe digits --out runs/digits/shards")
@recipe_options
@out_option("Folder of the set; new, or a set of the same plan, which goes on where it stopped.")
@diffusion_option
@click.option(
    "--part",
    default="0/1",
    metavar="I/N",
    show_default=True,
    help="Make only part I of N (I from 0 to N-1), for job arrays.",
)
@check_option
def make(
    recipe_name: str, overrides: tuple[str, ...], out: Path, diffusion: str, part: str, check: bool
) -> None:
    """Make a shard set of anchors and synthetic positives; resumable and idempotent."""
    read_launch()  # what is left over in the environment is refused before any work

    # Recipe, anchors and model
    recipe = load_recipe(recipe_name, overrides)
    parsed_part = parse_part(part)
    path = diffusion_path(recipe, diffusion, out)
    anchors = open_anchors(recipe.anchors)
    from ...generate import Sampler, load_diffusion, make_shards
    from ...shards import write_plan
    from ...shards.format.plan import check_plan

    model = _settled(load_diffusion(path, anchors.size, recipe.diffusion.latent), recipe)

    if check:
        check_plan(out, _new_plan(recipe, anchors, model, out))
        return

    # Plan; the others wait while the first process reads the whole source for it
    processes = join_launch()
    if processes.is_main_process:
        write_plan(out, _new_plan(recipe, anchors, model, out))
        remove_temporaries(out)

    processes.wait_for_everyone()

    # Shards
    anchors = follow_plan(screened(anchors, beside(out, "skipped")), read_plan(out).source)
    config = resolved_sampler(recipe, out)
    say_if_emulated("sampler.dtype", config.dtype == "bfloat16")
    sampler = Sampler(model, config, str(processes.device))
    rank = processes.process_index
    world_size = processes.num_processes

    with ProgressReport("shards", "anchors") as report:
        set_id = make_shards(
            out, read_plan(out), anchors, sampler, parsed_part, rank, world_size, report
        )

    if set_id:
        print(f"shard set {out} is sealed, set ID {set_id}", flush=True)
    elif world_size == 1:
        say(f"part {part} of {out} is done; the last part to finish seals the set")


def _new_plan(recipe: Recipe, anchors: ImageSource, model: "DiffusionModel", out: Path) -> Plan:
    """Return the plan that the recipe's settings make, the model checked against the anchors for a new one."""
    from ...generate import check_statistics, make_plan

    anchors = readable_anchors(anchors, out)
    _check_classes(model, anchors)
    if not (out / PLAN).exists():
        check_statistics(model, anchors, _device(), recipe.sampler.clip)

    plan = make_plan(anchors, model, resolved_sampler(recipe, out), recipe.shards)
    if recipe.shards.megabytes:
        say(f"shards: {plan.shard_count} of {records_text(plan, recipe.shards)}")
    return plan


def records_text(plan: Plan, shards: ShardsConfig) -> str:
    """Return how many anchors a shard has, and which key decided it."""
    anchors = f"{plan.shards.records} anchors"
    if not shards.megabytes:
        return anchors
    return f"at most {anchors}, by shards.megabytes = {shards.megabytes:g}, which goes before shards.records"


def _settled(model: "DiffusionModel", recipe: Recipe) -> "DiffusionModel":
    """Return the model with its classes as the recipe wants them; refuse a sampler that does not go with it."""
    from ...generate import (
        check_clip,
        check_guidance,
        check_told_features,
        check_window,
        settled_condition,
    )

    condition = settled_condition(model.condition, recipe.diffusion, model.origin)
    check_guidance(condition, recipe.sampler.guidance, model.origin)
    check_told_features(condition, recipe.sampler, model.origin)
    check_window(recipe.sampler, model.noise_schedule)
    check_clip(model, recipe.sampler.clip)
    return replace(model, condition=condition)


def _check_classes(model: "DiffusionModel", anchors: ImageSource) -> None:
    """Refuse anchors without a class of the model, those that do not decode left aside."""
    if model.condition is not None:
        model.condition.check_anchors(anchors)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
