"""Keep a queue of past embeddings, the negatives of MoCo and the neighbours of NNCLR and All4One."""

import torch
from torch import nn
from torch.nn import functional as F

from ...core import InputError
from ..config import PretrainConfig
from ..distributed import gather


class Queue(nn.Module):
    """Keeps the last `queue_size` embeddings of all ranks, `(Q, D)` of unit length, the same on every rank.

    Raises:
        InputError: the size is no multiple of the global batch.
    """

    embeddings_QD: torch.Tensor
    place: torch.Tensor

    def __init__(self, config: PretrainConfig):
        super().__init__()
        if config.queue_size % config.batch_size:
            raise InputError(
                f"pretrain.queue_size is {config.queue_size}, expected a multiple of batch_size = {config.batch_size}"
            )

        self.register_buffer(
            "embeddings_QD",
            F.normalize(torch.randn(config.queue_size, config.projector_out), dim=1),
        )
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def add(self, z_BD: torch.Tensor) -> None:
        """Put the global batch in the place of the oldest entries."""
        everyone = gather(z_BD.detach()).to(self.embeddings_QD.dtype)
        places = self.place + torch.arange(len(everyone), device=everyone.device)

        # Another tensor, since the loss of this step still refers to the old one.
        self.embeddings_QD = self.embeddings_QD.index_copy(0, places, everyone)
        self.place = (self.place + len(everyone)) % len(self.embeddings_QD)
