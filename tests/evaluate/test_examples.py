"""Run the examples in the docstrings of `clsp.evaluate`; every public class has one."""

import doctest
import importlib
import pkgutil

import clsp.evaluate
import pytest

PUBLIC_CLASSES = sorted(
    name for name in clsp.evaluate.__all__ if isinstance(getattr(clsp.evaluate, name), type)
)
MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(clsp.evaluate.__path__, "clsp.evaluate.")
    if not module.ispkg
)


@pytest.mark.parametrize("name", PUBLIC_CLASSES)
def test_every_public_class_has_an_example(name):
    found = doctest.DocTestFinder(recurse=False).find(getattr(clsp.evaluate, name))
    assert found and found[0].examples


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_do_what_they_show(name):
    found = doctest.testmod(importlib.import_module(name))
    assert found.failed == 0
