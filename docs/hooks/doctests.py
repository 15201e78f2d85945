"""Show the examples in docstrings as code: Markdown would take `>>>` for quotes."""

import doctest
import textwrap
from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts a fence around every example of a docstring."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        """Rewrite the docstrings of a package that has been read."""
        _rewrite(pkg)


def _rewrite(thing: griffe.Object) -> None:
    if thing.docstring and ">>>" in thing.docstring.value:
        thing.docstring.value = fenced(thing.docstring.value)

    for member in thing.members.values():
        if not isinstance(member, griffe.Alias):
            _rewrite(member)


def fenced(text: str) -> str:
    """Return a docstring with its examples in fences; examples that follow each other share one."""
    parts = []
    code = ""
    for piece in doctest.DocTestParser().parse(text):
        if isinstance(piece, doctest.Example):
            code += _source(piece)
        elif piece.strip() or not code:
            parts += [code, piece]
            code = ""

    parts.append(code)
    return "".join(f"\n```pycon\n{part}```\n" if part.startswith(">>>") else part for part in parts)


def _source(example: doctest.Example) -> str:
    first, *others = example.source.splitlines()
    lines = [f">>> {first}", *(f"... {line}" for line in others)]
    return "\n".join(lines) + "\n" + textwrap.dedent(example.want)
