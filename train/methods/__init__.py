"""The methods of the comparison, one file each, by name: a new one is a new file that this list imports."""

from .all4one import All4One
from .base import METHODS, Method, build_method, method_class
from .mocov2plus import MoCoV2Plus
from .nnclr import NNCLR
from .simclr import SimCLR
from .supcon import SupCon

__all__ = [
    "METHODS",
    "NNCLR",
    "All4One",
    "Method",
    "MoCoV2Plus",
    "SimCLR",
    "SupCon",
    "build_method",
    "method_class",
]
