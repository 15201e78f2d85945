"""How the code reads, in figures: run it before and after a change of style.

    python benchmarks/style.py

Counted over the function bodies of the packages (docstrings apart), per 100 lines of code.
"""

import ast
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("core", "shards", "generate", "train", "evaluate", "cli")
RIDDLES = ("Whether", "Which", "What", "Where", "Whose")
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


@dataclass
class Figures:
    """Holds counts over all files."""

    modules: int = 0
    short_modules: int = 0
    code_lines: int = 0
    blank_lines: int = 0
    comment_lines: int = 0
    statements: int = 0
    nodes: int = 0
    comprehensions: int = 0
    assignments: int = 0
    tuple_assignments: int = 0
    riddles: int = 0
    untyped_dicts: int = 0

    def per_100_lines(self, count: int) -> float:
        """Return a count per 100 lines of code."""
        return 100 * count / self.code_lines

    @property
    def tuple_share(self) -> float:
        """Return the share of assignments `a, b = x, y`, in percent."""
        return 100 * self.tuple_assignments / self.assignments


def source_files(root: Path = ROOT) -> list[Path]:
    """Return the packages' modules."""
    return [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def measure(paths: list[Path]) -> Figures:
    """Return the figures of these files."""
    figures = Figures()

    for path in paths:
        text = path.read_text()
        lines = text.splitlines()
        tree = ast.parse(text)

        figures.modules += 1
        figures.short_modules += len(lines) < 100
        figures.untyped_dicts += text.count("dict[str, Any]")

        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                figures.riddles += docstring.startswith(RIDDLES)

            if isinstance(node, ast.Assign):
                figures.assignments += 1
                pair = isinstance(node.targets[0], ast.Tuple) and isinstance(node.value, ast.Tuple)
                figures.tuple_assignments += pair

        for first, last in _bodies(tree):
            for line in lines[first - 1 : last]:
                figures.blank_lines += not line.strip()
                figures.comment_lines += line.strip().startswith("#")
                figures.code_lines += bool(line.strip()) and not line.strip().startswith("#")

        for function in _outer_functions(tree):
            for statement in _without_docstring(function):
                for node in ast.walk(statement):
                    figures.nodes += 1
                    figures.statements += isinstance(node, ast.stmt)
                    figures.comprehensions += isinstance(node, COMPREHENSIONS)

    return figures


def _outer_functions(tree: ast.Module) -> list[ast.FunctionDef]:
    """Return functions and methods, but not those inside of others."""
    found = []
    for node in tree.body:
        members = node.body if isinstance(node, ast.ClassDef) else [node]
        found += [member for member in members if isinstance(member, ast.FunctionDef)]

    return found


def _without_docstring(function: ast.FunctionDef) -> list[ast.stmt]:
    return function.body[1:] if ast.get_docstring(function) else function.body


def _bodies(tree: ast.Module) -> list[tuple[int, int]]:
    """Return the first and last line of every outer function's body."""
    found = []
    for function in _outer_functions(tree):
        body = _without_docstring(function)
        if body:
            found.append((body[0].lineno, body[-1].end_lineno or body[-1].lineno))

    return found


def main() -> None:
    figures = measure(source_files())

    print("per 100 code lines of function bodies, if not said otherwise")
    print(f"  blank lines                    {figures.per_100_lines(figures.blank_lines):6.1f}")
    print(f"  own-line comments              {figures.per_100_lines(figures.comment_lines):6.1f}")
    print(f"  comprehensions                 {figures.per_100_lines(figures.comprehensions):6.1f}")
    print(f"  syntax-tree nodes a statement  {figures.nodes / figures.statements:6.1f}")
    print(f"  tuple assignments, % of all    {figures.tuple_share:6.1f}")
    print(f"  docstrings that open in W…     {figures.riddles:6d}")
    print(f"  dict[str, Any]                 {figures.untyped_dicts:6d}")
    print(f"  modules under 100 lines        {figures.short_modules} of {figures.modules}")


if __name__ == "__main__":
    main()
