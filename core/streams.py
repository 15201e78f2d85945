"""Name random streams by what they are for: the same numbers on every machine and for any number of processes."""

import hashlib

import numpy as np


def stream_key(*parts: object) -> int:
    """Return a 64-bit number that names a random stream."""
    text = "\0".join([f"{part}" for part in parts]).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def stream_seed(*parts: object) -> int:
    """Return the number of the stream as a seed for torch's generators: 63 bits, never negative."""
    return stream_key(*parts) % 2**63


def permutation(count: int, *stream: object) -> np.ndarray:
    """Return a permutation of 0 … count-1 that depends on `stream` alone.

    Sorts the raw 64-bit output of NumPy's Philox, which NumPy guarantees never to change (it gives no such promise
    for `Generator.permutation`).
    """
    draws = np.random.Philox(key=stream_key(*stream)).random_raw(count)
    return np.argsort(draws, kind="stable")
