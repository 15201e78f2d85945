"""Refuse runs whose candidates are chosen by labels, unless the method has these anyway or the recipe allows it."""

from ..core import InputError
from .config import PretrainConfig
from .methods.registry import method_class


def check_permission(config: PretrainConfig) -> None:
    """Raise InputError where labels would choose the candidates of a method without labels, and nobody allowed it."""
    if not config.goes_by_labels or config.synthetic.allow_labels:
        return

    if not method_class(config).needs_labels:
        raise InputError(
            f"pretrain.synthetic.measure = {config.synthetic.measure} uses labels, so the run would not be "
            "self-supervised; choose margin, anchor_rank or cosine, or set pretrain.synthetic.allow_labels=true"
        )
