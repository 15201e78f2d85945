"""Offer what all packages stand on: errors, durable files, JSON, streams, sections. Imports no torch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
