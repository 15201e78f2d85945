"""Stage 2: pairs to views, methods, losses, the loop and its checkpoints."""

from importlib.util import find_spec

import lazy_loader

if find_spec("timm"):  # importing this package makes the CIFAR-stem ResNets known to timm
    from . import cifar_resnet as cifar_resnet

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
