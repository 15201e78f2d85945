import math
import struct

import numpy as np
import pytest
import torch
from clsp.generate import Stream, keyed_normal, noise_keys, philox
from scipy import stats

# The known-answer vectors that the Philox authors publish with Random123 (kat_vectors, philox4x32 10).
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def words(text: str) -> list[torch.Tensor]:
    return [torch.tensor([int(word, 16)]) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_published_vectors(counter, key, expected):
    assert [f"{word.item():08x}" for word in philox(words(counter), words(key))] == expected.split()


def philox_in_python(counter: list[int], key: list[int]) -> list[int]:
    """Philox 4x32-10 from its paper, in Python's unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def test_normal_values_follow_the_specification_value_by_value():
    import hashlib

    seed, key, timestep, candidate = 7, "train_00000003", 999, 5
    digest = hashlib.blake2b(struct.pack("<Q", seed) + key.encode(), digest_size=8).digest()
    key_words = list(struct.unpack("<II", digest))
    expected = []
    for block in range(3):
        u = philox_in_python([block, timestep, candidate, Stream.STEP], key_words)
        for a, b in ((u[0], u[1]), (u[2], u[3])):
            radius = math.sqrt(-2 * math.log((a + 1) / 2**32))
            expected += [
                radius * math.cos(2 * math.pi * b / 2**32),
                radius * math.sin(2 * math.pi * b / 2**32),
            ]
    keys = noise_keys(seed, [key], torch.device("cpu"))
    found = keyed_normal(keys, (10,), timestep, candidate, Stream.STEP)
    np.testing.assert_array_equal(found[0].numpy(), np.array(expected[:10], np.float32))


def test_an_image_depends_on_nothing_but_its_own_name():
    keys = noise_keys(0, ["a", "b", "c"], torch.device("cpu"))
    together = keyed_normal(keys, (3, 8, 8), 9, 1, Stream.ANCHOR)
    alone = keyed_normal(keys[1:2], (3, 8, 8), 9, 1, Stream.ANCHOR)
    assert torch.equal(together[1], alone[0])


def test_every_part_of_the_name_matters():
    def noise(seed=0, key="a", timestep=9, candidate=1, stream=Stream.ANCHOR):
        return keyed_normal(
            noise_keys(seed, [key], torch.device("cpu")), (64,), timestep, candidate, stream
        )

    others = [
        noise(seed=1),
        noise(key="b"),
        noise(timestep=19),
        noise(candidate=2),
        noise(stream=Stream.STEP),
    ]
    assert all(not torch.isclose(noise(), other).any() for other in others)


def test_values_are_standard_normal_and_uncorrelated():
    keys = noise_keys(0, [f"train_{index:08d}" for index in range(64)], torch.device("cpu"))
    values = keyed_normal(keys, (3, 32, 32), 499, 0, Stream.INITIAL).flatten(1).double().numpy()
    assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
    correlations = np.corrcoef(values)[np.triu_indices(64, 1)]
    assert np.abs(correlations).max() < 5 / math.sqrt(values.shape[1])
