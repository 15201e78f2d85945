"""Run the examples in the docstrings of `clsp.core` and `clsp.shards`; every public class has one."""

import doctest
import importlib
import pkgutil

import clsp.core
import clsp.shards
import pytest

PACKAGES = (clsp.core, clsp.shards)
PUBLIC = [(package, name) for package in PACKAGES for name in package.__all__]
PUBLIC_CLASSES = [
    pytest.param(getattr(package, name), id=name)
    for package, name in PUBLIC
    if isinstance(getattr(package, name), type)
]
MODULES = sorted(
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if not module.ispkg
)


@pytest.mark.parametrize("public_class", PUBLIC_CLASSES)
def test_every_public_class_has_an_example(public_class):
    found = doctest.DocTestFinder(recurse=False).find(public_class)
    assert found and found[0].examples


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_do_what_they_show(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
