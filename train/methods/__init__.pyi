from .base import Method as Method
from .registry import METHODS as METHODS
from .registry import build_method as build_method
from .registry import method_class as method_class
from .registry import register as register
