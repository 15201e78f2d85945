"""List the probes: the one place that knows which there are, what their figures are called and what they depend on.

A new probe is a file in this folder with a function `run` (see `Probe.run`), and an entry of `PROBES`. A section of the
recipe that it needs lies in `evaluate/config.py`. This file imports no torch, since comparisons and pages need none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from pydantic import BaseModel, ConfigDict

Figures = dict[str, Any]
"""A probe's figures by name: percents, their intervals, and facts about them."""

FEW_LABELS = "labels_"
"""The beginning of a figure's name that says with how many labels it was reached: `labels_1`, `labels_0.1`."""


class FewLabels(BaseModel):
    """Holds what a result says of its figures with few labels beside their means, accuracies in percent.

    >>> FewLabels(draws=2, top1={"labels_1": [60.0, 62.0]}, std={"labels_1": 1.41}).std["labels_1"]
    1.41
    """

    model_config = ConfigDict(frozen=True)

    draws: int
    """How often the labels were drawn."""
    top1: Mapping[str, list[float]] = {}
    """By the figure's name the accuracy of every draw; older files have none."""
    std: Mapping[str, float | None] = {}
    """By the figure's name the sample's deviation over the draws (n - 1); None for a single one."""


@dataclass(frozen=True)
class Probe:
    """Describes an evaluation of frozen features.

    >>> probe = Probe("knn", "knn", ("temperature",), headings={"k20": "20 neighbours"})
    >>> probe.heading("k20"), probe.heading("k200")
    ('20 neighbours', 'knn k200')
    """

    task: str
    """Its name: of its file here, of its result file `TASK.json`, and of its metrics `TASK.FIGURE`."""
    section: str
    """Its section of the recipe."""
    conditions: tuple[str, ...]
    """The keys of the section that decide what a figure is of; learning rates may differ, as the paper's do."""
    headings: Mapping[str, str] = field(default_factory=dict)
    """The headings of figures that have another one than `TASK FIGURE`."""
    first: tuple[str, ...] = ()
    """The figures whose columns come first; the others follow by name."""
    protocol: str | None = None
    """The value of `linear_eval.protocol` that chooses it; None for a probe with a command of its own."""
    mirrors: bool = False
    """True if it trains on mirror images, too, where `linear_eval.flip` says so."""
    has_map: bool = False
    """True if its figures hold a map of the test images' features, which the page draws."""
    per_data_set: bool = False
    """True if its figures are one per data set; a comparison adds their mean."""

    @property
    def run(self) -> Callable[..., Figures]:
        """Return the function `run(train, test, classes, config, seed)` of the probe's file, imported only now.

        `config` is the probe's section of the recipe.
        """
        return import_module(f".{self.task}", __package__).run

    def heading(self, figure: str) -> str:
        """Return the heading of a figure's column."""
        if figure.startswith(FEW_LABELS):
            amount = float(figure.removeprefix(FEW_LABELS))
            if amount < 1:
                return f"{self.task}, {100 * amount:g} % of labels"
            return f"{self.task}, {amount:g} per class"

        return self.headings.get(figure, f"{self.task} {figure.replace('.', ' ')}")

    def place(self, figure: str) -> int:
        """Return the place of a figure's column; the figures that have none of their own share the last one."""
        return self.first.index(figure) if figure in self.first else len(self.first)


LABELLED_SETS = ("test_path", "test_split", "train_limit", "test_limit")

PROBES: tuple[Probe, ...] = (
    Probe(
        "linear",
        section="linear_eval",
        conditions=LABELLED_SETS,
        headings={
            "top1": "linear top-1",
            "top5": "linear top-5",
            "mean_per_class": "linear mean per class",
        },
        first=("top1", "top5", "mean_per_class"),
        protocol="clsp",
        mirrors=True,
    ),
    Probe("sweep", section="linear_eval", conditions=LABELLED_SETS, protocol="sweep", mirrors=True),
    Probe(
        "knn",
        section="knn",
        conditions=("temperature",),
        headings={"replica_best_on_test": "knn best k on test (replica)"},
        has_map=True,
    ),
    Probe("transfer", section="transfer", conditions=("l2", "limit"), per_data_set=True),
)
"""Every probe, in the order of the tables."""


def tasks() -> list[str]:
    """Return the names of all probes, in the order of the tables."""
    return [probe.task for probe in PROBES]


def find_probe(task: str) -> Probe:
    """Return the probe of that name.

    Raises:
        KeyError: there is none.
    """
    return {probe.task: probe for probe in PROBES}[task]


def probe_of_protocol(protocol: str) -> Probe:
    """Return the probe that a value of `linear_eval.protocol` chooses.

    Raises:
        KeyError: there is none.
    """
    return {probe.protocol: probe for probe in PROBES}[protocol]


def heading(metric: str) -> str:
    """Return a metric's name for people."""
    task, _, figure = metric.partition(".")
    return find_probe(task).heading(figure)


def column(metric: str) -> tuple[int, int, str]:
    """Return the key that sorts metrics as the columns of a table: by probe, the usual figures first, then by name."""
    task, _, figure = metric.partition(".")
    return tasks().index(task), find_probe(task).place(figure), metric
