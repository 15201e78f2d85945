"""Give settings with which every method is small, to try things out with."""

from .config import PretrainConfig


def example_config(method: str = "simclr") -> PretrainConfig:
    """Return settings of a network of a few thousand weights, for batches of four images.

    >>> example_config("nnclr").run_name
    'nnclr+shards'
    """
    return PretrainConfig(
        method=method,
        batch_size=4,
        backbone_kwargs={"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
        projector_hidden=16,
        projector_out=8,
        predictor_hidden=16,
        queue_size=8,
    )
