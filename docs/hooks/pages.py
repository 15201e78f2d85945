"""Make pages of the site while mkdocs builds it: README and its like from the top folder, one page per package.

The folders are installed as `clsp.*`, but no folder is called `clsp`. The docstrings are read without running the code,
so a copy is made in which there is one.
"""

import json
import re
import shutil
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
COPY = ROOT / "build" / "docs"
"""The copy; mkdocs.yml names it in `paths`."""

TOP_PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
PACKAGES = ("core", "shards", "generate", "train", "evaluate")
PUBLIC_NAME = re.compile(r"^from (\.[\w.]*) import (\w+) as (\w+)$", re.M)


@event_priority(100)  # mkdocstrings looks for the folder in its own on_config
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Copy the packages to where their docstrings are read."""
    shutil.rmtree(COPY, ignore_errors=True)
    for package in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / package, COPY / "clsp" / package, ignore=ignored)

    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie nowhere in docs/."""
    for page, source in TOP_PAGES.items():
        content = _relinked((ROOT / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=content))

    for package in PACKAGES:
        content = _reference((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"), package)
        files.append(File.generated(config, f"api/{package}.md", content=content))

    return files


def _relinked(text: str) -> str:
    """Let the links of a file in the top folder lead to the site's pages."""
    text = text.replace("](docs/", "](")
    for page, source in TOP_PAGES.items():
        text = text.replace(f"]({source})", f"]({page})")
    return text


def _reference(stub: str, package: str) -> str:
    """Return the page of a package: its docstring, then the public names of its stub, under the module each is from."""
    parts = [
        f"# clsp.{package}",
        _directive(f"clsp.{package}", show_root_heading=False, members=False),
    ]
    last = ""
    for source, name, _ in PUBLIC_NAME.findall(stub):
        module = f"clsp.{package}{source.rstrip('.')}"
        if module != last:
            parts.append(f"## {source.lstrip('.')}")

        # Every key of a recipe's section is of interest, also where its name says all.
        is_section = name.endswith("Config")
        shown = f"clsp.{package}.{name}"
        parts.append(
            _directive(
                f"{module}.{name}", heading=shown, toc_label=name, show_if_no_docstring=is_section
            )
        )
        last = module

    return "\n\n".join(parts) + "\n"


def _directive(path: str, **options: str | bool) -> str:
    """Return mkdocstrings' line for an object, with its options."""
    lines = [f"::: {path}", "    options:"]
    for name, value in options.items():
        lines.append(f"      {name}: {json.dumps(value)}")
    return "\n".join(lines)
