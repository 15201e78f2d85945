"""A probe that joins the registry is run, read, compared and shown without any other change."""

import json

import pytest
import torch
from clsp.evaluate import PROBES, Features, compare_runs, markdown_table
from clsp.evaluate.config import KnnConfig, LinearEvalConfig
from clsp.evaluate.probes import registry
from clsp.evaluate.probes.registry import Probe
from sklearn.datasets import load_digits

SECTIONS = {
    "linear_eval": LinearEvalConfig(epochs=5, sweep_lr=(0.1,), sweep_weight_decay=(0.0,), labels=5),
    "knn": KnnConfig(),
}


@pytest.fixture(scope="module")
def sets() -> tuple[Features, Features]:
    x, y = load_digits(return_X_y=True)
    features, labels = torch.from_numpy(x / 16).float(), torch.from_numpy(y)
    return (
        Features(features[:1000], None, labels[:1000]),
        Features(features[1000:1200], None, labels[1000:1200]),
    )


@pytest.mark.parametrize(
    "probe", [probe for probe in PROBES if probe.section in SECTIONS], ids=lambda probe: probe.task
)
def test_every_probe_tells_digits_apart_and_names_its_figures(sets, probe):
    result = probe.run(*sets, 10, SECTIONS[probe.section], 0)
    figures = {name: value for name, value in result.items() if isinstance(value, float)}
    assert figures and all(60 < value <= 100 for value in figures.values())
    assert set(probe.first) <= set(figures)
    assert all(probe.task in probe.heading(name) for name in figures)
    assert bool(result.get("map")) == probe.has_map
    assert ("labels_5" in figures) == (probe.section == "linear_eval")


def test_every_condition_is_a_key_of_its_section():
    from clsp.cli.recipe import Recipe

    for probe in PROBES:
        section = Recipe.model_fields[probe.section].annotation
        assert set(probe.conditions) <= set(section.model_fields)


def write_run(folder, seed, **settings):
    folder.mkdir()
    content = {"task": "mlp", "name": "a", "seed": seed, "set": "s", "checkpoint": "c"}
    content |= {"result": {"deep": 90.0 + seed, "top1": 80.0}, "recipe": {"mlp": settings}}
    (folder / "mlp.json").write_text(json.dumps(content))
    return folder


def test_a_further_probe_is_compared_like_the_others(tmp_path, monkeypatch):
    probe = Probe("mlp", "mlp", ("layers",), headings={"top1": "MLP top-1"}, first=("top1",))
    monkeypatch.setattr(registry, "PROBES", (*PROBES, probe))
    folders = [write_run(tmp_path / str(seed), seed, layers=2, lr=seed) for seed in (0, 1)]
    table = markdown_table(compare_runs(folders))
    assert "| run | seeds | MLP top-1 | mlp deep |" in table and "90.50 ± 0.71" in table
    other = write_run(tmp_path / "2", 2, layers=3)
    with pytest.raises(ValueError, match="mlp was evaluated in another way .*layers"):
        compare_runs([*folders, other])
