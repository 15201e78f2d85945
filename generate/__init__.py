"""Stage 1: diffusion training, keyed noise, bottleneck interpolation, samplers and the worker."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
