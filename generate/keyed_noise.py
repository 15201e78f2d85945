"""Gaussian noise as a pure function of its name: (seed, anchor key, candidate, timestep, stream).

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) in integer operations that give
the same bits on every device, then Box-Muller in float64, rounded to float32.

Shape legend: B anchors, N values, 4 words of a Philox block.
"""

import hashlib
import math
from collections.abc import Sequence
from enum import IntEnum

import torch

from ..core import to_device

WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


class Stream(IntEnum):
    """Names the purpose of a noise: the fourth word of the counter.

    >>> keys_B2 = noise_keys(0, ["train_00000000"], torch.device("cpu"))
    >>> shared = keyed_normal(keys_B2, (3, 8, 8), 500, 0, Stream.SHARED_ANCHOR)
    >>> torch.equal(shared, keyed_normal(keys_B2, (3, 8, 8), 500, 0, Stream.SHARED_ANCHOR))
    True
    >>> torch.equal(shared, keyed_normal(keys_B2, (3, 8, 8), 500, 0, Stream.STEP))
    False
    """

    INITIAL = 0
    """x_T, at timestep 0: the same for every number of steps."""
    STEP = 1
    """The scheduler's own noise (η > 0)."""
    ANCHOR = 2
    """Noising of the anchor, per candidate."""
    SHARED_ANCHOR = 3
    """Noising of the anchor, shared by its candidates (candidate 0)."""


def noise_key(seed: int, anchor_key: str) -> tuple[int, int]:
    """Return the two 32-bit key words of an anchor: BLAKE2b-64 of seed (8 bytes, little-endian) and key (UTF-8)."""
    digest = hashlib.blake2b(
        seed.to_bytes(8, "little") + anchor_key.encode(), digest_size=8
    ).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def noise_keys(seed: int, anchor_keys: Sequence[str], device: torch.device) -> torch.Tensor:
    """Return `noise_key` of several anchors, `(B, 2)` int64."""
    keys = [noise_key(seed, key) for key in anchor_keys]
    return to_device(torch.tensor(keys, dtype=torch.int64), device)


def philox(counter_4: Sequence[torch.Tensor], key_2: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Compute Philox 4x32-10: four words from a counter of four and a key of two, int64 of values 0 … 2^32-1."""
    c0, c1, c2, c3 = counter_4
    k0, k1 = key_2
    for _ in range(ROUNDS):
        # The 64-bit product may wrap to a negative int64; its bits, and so both halves, are those of the unsigned one.
        product0 = c0 * MULTIPLIERS[0]
        product1 = c2 * MULTIPLIERS[1]
        high0 = (product0 >> 32) & WORD
        low0 = product0 & WORD
        high1 = (product1 >> 32) & WORD
        low1 = product1 & WORD

        # Exchange the halves and mix in the key
        c0 = high1 ^ c1 ^ k0
        c1 = low1
        c2 = high0 ^ c3 ^ k1
        c3 = low0

        # The next round's key (Weyl sequence)
        k0 = (k0 + KEY_INCREMENTS[0]) & WORD
        k1 = (k1 + KEY_INCREMENTS[1]) & WORD

    return [c0, c1, c2, c3]


def keyed_normal(
    keys_B2: torch.Tensor, shape: Sequence[int], timestep: int, candidate: int, stream: Stream
) -> torch.Tensor:
    """Draw standard normal values `(B, *shape)` float32 on the keys' device.

    Value n of an anchor comes from word n mod 4 of the block with counter (n div 4, timestep, candidate, stream).
    """
    count = math.prod(shape)
    blocks = -(-count // 4)
    device = keys_B2.device

    def constant(value: int) -> torch.Tensor:
        return torch.full((1, 1), value, dtype=torch.int64, device=device)

    # Four uniform words per block
    numbers = torch.arange(blocks, dtype=torch.int64, device=device)[None]
    counter = [numbers, constant(timestep), constant(candidate), constant(int(stream))]
    word0, word1, word2, word3 = philox(counter, keys_B2.split(1, dim=1))

    # Four normal values of them
    normals = [*_box_muller(word0, word1), *_box_muller(word2, word3)]
    values_BN = torch.stack(normals, dim=-1).flatten(1)[:, :count]

    return values_BN.float().reshape(-1, *shape)


def _box_muller(first: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # u1 = (word + 1) / 2^32 is never 0, and its logarithm finite
    radius = torch.sqrt(-2 * torch.log((first.double() + 1) * 2.0**-32))
    angle = second.double() * (2 * math.pi * 2.0**-32)
    return radius * torch.cos(angle), radius * torch.sin(angle)
