"""Run the examples in the docstrings; every public class and every shipped method has one."""

import doctest
import importlib
import pkgutil

import clsp.core
import clsp.evaluate
import clsp.generate
import clsp.shards
import clsp.train
import pytest

PACKAGES = (clsp.core, clsp.shards, clsp.generate, clsp.train, clsp.evaluate)


def classes_with_an_example():
    """List the public classes of the packages, and the methods."""
    found = [getattr(package, name) for package in PACKAGES for name in package.__all__]
    found += clsp.train.METHODS.values()
    return [pytest.param(thing, id=thing.__name__) for thing in found if isinstance(thing, type)]


def modules():
    """List the names of the packages' modules."""
    found = []
    for package in PACKAGES:
        found += pkgutil.walk_packages(package.__path__, f"{package.__name__}.")

    return sorted(module.name for module in found if not module.ispkg)


@pytest.mark.parametrize("documented", classes_with_an_example())
def test_every_public_class_has_an_example(documented):
    found = doctest.DocTestFinder(recurse=False).find(documented)
    assert found and found[0].examples


@pytest.mark.parametrize("name", modules())
def test_the_examples_do_what_they_show(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
