"""Compare runs: from their result files to means over seeds, paired differences and published figures."""

import os
import statistics
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict

from ...core import InputError, differences, different_values
from ...core.run_name import NO_SOURCE, RunName
from ..features.checkpoint import read_run
from ..probes.registry import PROBES, Probe, find_probe
from .published import PublishedRow, published_rows
from .results import RunResult, read_results

RESAMPLES = 10_000
PRECISIONS = {"no": "float32", "bf16": "bfloat16"}
CONTROL = "augmentation"
"""The source of the third-view control, which every other source of the same method is compared with, too."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True)


class Mean(_Row):
    """Holds the mean of a metric over the seeds of a run name.

    >>> Mean(mean=92.5, std=None, n=1).std is None
    True
    """

    mean: float
    std: float | None
    """The sample's standard deviation (n - 1); None for a single seed."""
    n: int


class Difference(_Row):
    """Holds the mean difference of a metric between two run names, paired by seed.

    >>> Difference(mean=3.0, t_interval=[2.0, 4.0], n=3).t_interval
    [2.0, 4.0]
    """

    mean: float
    interval: list[float] | None = None
    """Of the bootstrap; None below three seeds."""
    t_interval: list[float] | None = None
    """Student's; None below two seeds."""
    n: int


class ComparedRun(_Row):
    """Holds a run with every metric of it.

    >>> ComparedRun(folder="a-s0", name="a", seed=0, checkpoint="c", metrics={"knn.k20": 71.5}).set is None
    True
    """

    folder: str
    """Its folder, named from the comparison's own."""
    name: str
    seed: int
    set: str | None = None
    data: Any = None
    checkpoint: str
    precision: str | None = None
    metrics: dict[str, int | float]


class SummaryRow(_Row):
    """Holds the means of a run name.

    >>> SummaryRow(name="a", seeds=[0, 1], metrics={"knn.k20": Mean(mean=70, std=1, n=2)}).seeds
    [0, 1]
    """

    name: str
    seeds: list[int]
    metrics: dict[str, Mean]
    std_of_draws: dict[str, float] = {}
    """Of a single seed: the deviations of its figures with few labels over the draws of the labels."""


class DifferenceRow(_Row):
    """Holds the differences of a run name to another one.

    >>> DifferenceRow(name="b", baseline="a", metrics={"knn.k20": Difference(mean=3, n=1)}).baseline
    'a'
    """

    name: str
    baseline: str
    metrics: dict[str, Difference]


class MixedRow(_Row):
    """Holds the settings in which two runs of one name differ, so that its mean is over more than seeds.

    >>> mixed = MixedRow(name="a", folder="a-s0", other="a-s1", settings=["lr", "synthetic.candidates"])
    >>> mixed.settings[0]
    'lr'
    """

    name: str
    folder: str
    other: str
    """The first one that differs from it."""
    settings: list[str]
    """Keys of `[pretrain]`."""


class Comparison(_Row):
    """Holds what `results.json` does: every run, means, differences and published figures, accuracies in percent.

    >>> Comparison(runs=[], summary=[]).published
    []
    """

    runs: list[ComparedRun]
    summary: list[SummaryRow]
    differences: list[DifferenceRow] = []
    published: list[PublishedRow] = []
    mixed: list[MixedRow] = []


@dataclass(frozen=True)
class _Run:
    """Holds a run on its way into a comparison: its result files, at least one, and the metrics in them."""

    folder: str
    results: list[RunResult]
    metrics: dict[str, int | float]
    settings: dict[str, Any] | None = None
    """`[pretrain]` as the run recorded it, without what is another one for each seed; None where no run lies there."""

    @property
    def first(self) -> RunResult:
        """Return the result that the facts of the run are taken from."""
        return self.results[0]

    @property
    def name(self) -> str:
        return self.first.name

    @property
    def seed(self) -> int:
        return self.first.seed

    def std_of_draws(self) -> dict[str, float]:
        """Return the deviations over the draws of the labels, by metric, where there are several draws."""
        found = {}
        for result in self.results:
            if result.few_labels is None:
                continue
            for figure, std in result.few_labels.std.items():
                if std is not None:
                    found[f"{result.task}.{figure}"] = std

        return found

    def row(self) -> ComparedRun:
        """Return the run as the comparison shows it."""
        return ComparedRun(
            folder=self.folder,
            name=self.name,
            seed=self.seed,
            set=self.first.set,
            data=self.first.data_identity,
            checkpoint=self.first.checkpoint,
            precision=self.first.precision,
            metrics=self.metrics,
        )


def compare_runs(
    folders: Iterable[Path], baseline: str | None = None, out: Path | None = None
) -> Comparison:
    """Compare the results of runs, accuracies in percent.

    Args:
        out: the folder that the runs' own are named from; by default the current one.
        baseline: the run name that the differences are to; by default the first one without a `+`, else the first.

    Raises:
        InputError: no results, runs that a mean must not mix, or no run of the baseline's name.
    """
    runs = [_read_run(folder, out or Path()) for folder in folders]
    _check_comparable(runs)
    for probe in PROBES:
        if probe.per_data_set:
            _add_means_over_sets(runs, probe)

    by_name: dict[str, list[_Run]] = defaultdict(list)
    for run in runs:
        by_name[run.name].append(run)

    return Comparison(
        runs=[run.row() for run in runs],
        summary=[_summary_row(name, members) for name, members in by_name.items()],
        differences=_difference_rows(by_name, baseline),
        published=published_rows([run.first for run in runs]),
        mixed=_mixed_rows(by_name),
    )


def _read_run(folder: Path, out: Path) -> _Run:
    results = read_results(folder)
    metrics: dict[str, int | float] = {}
    for result in results:
        metrics |= result.figures

    settings = None
    record = read_run(folder)
    if record and "pretrain" in record:
        settings = {key: value for key, value in record["pretrain"].items() if key != "seed"}

    name = os.path.relpath(folder.absolute(), out.absolute())
    return _Run(name, results, metrics, settings)


# What may be compared


def _check_comparable(runs: Sequence[_Run]) -> None:
    """Refuse what a mean or a difference would hide.

    These are two runs of one name and seed, one name on two shard sets, and evaluations under other conditions or in
    another precision.
    """
    _refuse_doubles(runs)
    _refuse_several_sets(runs)
    _refuse_other_conditions(runs)
    _refuse_several_precisions(runs)


def _refuse_doubles(runs: Sequence[_Run]) -> None:
    """Refuse two runs of one name and seed."""
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        key = (run.name, run.seed)
        if key in seen:
            raise InputError(
                f"{seen[key]} and {run.folder} are both {run.name} seed {run.seed}; leave one out"
            )
        seen[key] = run.folder


def _refuse_several_sets(runs: Sequence[_Run]) -> None:
    """Refuse runs of one name that used different shard sets."""
    data_of_name: dict[str, Any] = {}
    for run in runs:
        data = run.first.data_identity
        if data_of_name.setdefault(run.name, data) != data:
            raise InputError(
                f"runs of {run.name} used different shard sets; compare runs on one set"
            )


def _refuse_other_conditions(runs: Sequence[_Run]) -> None:
    """Refuse results of one probe whose conditions differ."""
    known_of_task: dict[str, dict[str, Any]] = {}
    for run in runs:
        for result in run.results:
            found = _conditions(result)
            known = known_of_task.get(result.task, {})

            shared = [key for key in found if key in known]
            different = differences(
                {key: known[key] for key in shared}, {key: found[key] for key in shared}
            )
            if different:
                raise InputError(
                    f"{run.folder}: {result.task} was evaluated in another way ({'; '.join(different)})"
                )

            known_of_task[result.task] = found | known


def _conditions(result: RunResult) -> dict[str, Any]:
    """Return what decides what a result's figures are of."""
    probe = find_probe(result.task)
    settings = result.section(probe.section)
    found: dict[str, Any] = {"precision": result.precision}

    for key in probe.conditions:
        found[key] = settings.get(key)

    if result.few_labels:
        found["label_draws"] = result.few_labels.draws

    for name, value in result.sets.items():
        found[f"sets.{name}"] = value.set

    return found


def _refuse_several_precisions(runs: Sequence[_Run]) -> None:
    """Refuse features in several precisions, also where they are of different probes."""
    places: dict[str, str] = {}
    for run in runs:
        for result in run.results:
            if result.precision:
                places.setdefault(result.precision, f"{run.folder} ({result.task})")

    if len(places) > 1:
        found = ", ".join(f"{PRECISIONS[name]} in {place}" for name, place in places.items())
        raise InputError(
            f"features in several precisions: {found}; evaluate all in one (linear_eval.precision)"
        )


def _mixed_rows(by_name: dict[str, list[_Run]]) -> list[MixedRow]:
    """Return for each run name the first run whose settings are other ones than those of the first of that name."""
    rows = []
    for name, runs in by_name.items():
        recorded = [(run.folder, run.settings) for run in runs if run.settings is not None]
        for other, settings in recorded[1:]:
            folder, first = recorded[0]
            different = [value.key for value in different_values(first, settings)]
            if different:
                rows.append(MixedRow(name=name, folder=folder, other=other, settings=different))
                break

    return rows


# Means and differences


def _add_means_over_sets(runs: Sequence[_Run], probe: Probe) -> None:
    """Add `TASK.mean` to every run with this probe's figures, over the data sets that all of them have."""
    figures_of_run = []
    for run in runs:
        for result in run.results:
            if result.task == probe.task and result.figures:
                figures_of_run.append((run, set(result.figures)))

    if not figures_of_run:
        return

    common = sorted(set.intersection(*(figures for _, figures in figures_of_run)))
    if len(common) > 1:
        for run, _ in figures_of_run:
            mean = statistics.fmean(run.metrics[name] for name in common)
            run.metrics[f"{probe.task}.mean"] = mean


def _summary_row(name: str, runs: Sequence[_Run]) -> SummaryRow:
    """Average every metric over the seeds of a run name."""
    metrics = {}
    for metric in _metrics_of(run.metrics for run in runs):
        values = [run.metrics[metric] for run in runs if metric in run.metrics]
        mean = statistics.fmean(values)
        std = statistics.stdev(values) if len(values) > 1 else None
        metrics[metric] = Mean(mean=mean, std=std, n=len(values))

    seeds = sorted(run.seed for run in runs)
    std_of_draws = runs[0].std_of_draws() if len(runs) == 1 else {}

    return SummaryRow(name=name, seeds=seeds, metrics=metrics, std_of_draws=std_of_draws)


def _metrics_of(runs: Iterable[dict[str, int | float]]) -> list[str]:
    """List every metric once, in the order of the first run that has it."""
    metrics: dict[str, None] = {}
    for run in runs:
        metrics |= dict.fromkeys(run)

    return list(metrics)


def _difference_rows(by_name: dict[str, list[_Run]], baseline: str | None) -> list[DifferenceRow]:
    """Return per run name the mean difference to the baseline and, without a `baseline`, to the third-view control."""
    if baseline is not None and baseline not in by_name:
        raise InputError(f"--baseline {baseline}: no such run, found {', '.join(by_name)}")

    base = baseline or _default_baseline(by_name)
    pairs = [(name, base) for name in by_name if name != base]
    if baseline is None:
        pairs += _control_pairs(by_name, base)

    rows = []
    for name, other in pairs:
        metrics = _paired(by_name[name], by_name[other])
        if metrics:
            rows.append(DifferenceRow(name=name, baseline=other, metrics=metrics))

    return rows


def _default_baseline(names: Iterable[str]) -> str:
    """Return the first run name without a `+`, else the first."""
    names = list(names)
    for name in names:
        if RunName.parse(name).source == NO_SOURCE:
            return name

    return names[0]


def _control_pairs(names: Iterable[str], base: str) -> list[tuple[str, str]]:
    """Pair every source of a method with that method's third-view control: of the same label, or else without one."""
    names = list(names)
    pairs = []
    for name in names:
        if RunName.parse(name).source in (NO_SOURCE, CONTROL):
            continue

        control = control_of(name, names)
        if control is not None and control != base:
            pairs.append((name, control))

    return pairs


def control_of(name: str, names: Collection[str]) -> str | None:
    """Return the third-view control of a run: of the same label, or else without one; None where there is none."""
    run = RunName.parse(name)
    for label in (run.label, ""):
        control = str(RunName(run.method, CONTROL, label=label))
        if control in names:
            return control

    return None


def _paired(runs: Sequence[_Run], others: Sequence[_Run]) -> dict[str, Difference]:
    """Return per metric the mean difference over the seeds that both have, with its intervals."""
    # Runs of the same seed
    of_seed = {run.seed: run.metrics for run in others}
    pairs = [(run.metrics, of_seed[run.seed]) for run in runs if run.seed in of_seed]

    # The metrics that both of a pair have
    found = {}
    for metric in _metrics_of(own for own, _ in pairs):
        values = []
        for own, other in pairs:
            if metric in own and metric in other:
                values.append(own[metric] - other[metric])

        if values:
            found[metric] = Difference(
                mean=statistics.fmean(values),
                interval=bootstrap_interval(values),
                t_interval=t_interval(values),
                n=len(values),
            )

    return found


def bootstrap_interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % percentile interval of the mean over resampled seeds, None below three.

    With few seeds it is too narrow: of normal differences it holds the true mean in 74 % of cases at three seeds, in
    84 % at five.
    """
    if len(values) < 3:
        return None

    draws = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    means = np.asarray(values)[draws].mean(axis=1)
    return np.percentile(means, [2.5, 97.5]).tolist()


def t_interval(values: Sequence[float]) -> list[float] | None:
    """Return Student's 95 % interval of the mean, right for normal differences of any number; None below two."""
    from scipy.stats import t

    if len(values) < 2:
        return None

    mean = statistics.fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values)
    half /= len(values) ** 0.5
    return [mean - half, mean + half]
