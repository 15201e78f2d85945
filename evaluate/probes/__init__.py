"""Evaluate frozen features: a file per probe; `registry.py` lists them."""
