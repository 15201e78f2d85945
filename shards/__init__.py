"""Make and read shard sets: image sources and anchors, and the format (plan, write, commit, seal, read, verify)."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
