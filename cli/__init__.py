"""The `clsp` command: recipes, lazily loaded commands, progress, error messages and exit codes."""

from .main import main

__all__ = ["main"]
