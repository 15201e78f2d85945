"""The methods of the comparison, one file each, by name: a new one is a new file that this list imports."""

from .base import METHODS, Method, build_method
from .simclr import SimCLR

__all__ = ["METHODS", "Method", "SimCLR", "build_method"]
