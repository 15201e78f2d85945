"""The search among real images, a block at a time, against float64 figures of all pairs at once."""

import numpy as np
import pytest
import torch
from clsp.evaluate.quality.nearest import nearest_images, search_anchors
from torch.utils._python_dispatch import TorchDispatchMode

ANCHORS, CANDIDATES, WIDTH = 300, 4, 24


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def anchors() -> np.ndarray:
    return unit(np.random.default_rng(0).normal(size=(ANCHORS, WIDTH)))


def batch_of(anchors, start, count=10) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates that look more or less like the anchors from number `start` on, and the anchors' numbers."""
    own = np.repeat(np.arange(start, start + count), CANDIDATES)
    noise = np.random.default_rng(start + 1).normal(size=(len(own), WIDTH))
    near = np.tile(np.linspace(0.2, 1, CANDIDATES), count)[:, None]
    return unit(near * anchors[own] + (1 - near) * noise / 3), own


def search(candidates, anchors, own, block):
    as_float32 = (torch.from_numpy(values).float() for values in (candidates, anchors))
    return search_anchors(*as_float32, torch.from_numpy(own), block)


@pytest.mark.parametrize("start", [0, 137, ANCHORS - 10])
@pytest.mark.parametrize("block", [1, 7, 10, 64, 1000])
def test_blocks_of_any_size_find_what_all_pairs_at_once_tell(anchors, start, block):
    candidates, own = batch_of(anchors, start)
    found = search(candidates, anchors, own, block)

    # By hand, in float64
    rows = np.arange(len(own))
    cosines = candidates @ anchors.T
    to_own = cosines[rows, own]
    others = cosines.copy()
    others[rows, own] = -np.inf
    ranks = 1 + (others > to_own[:, None]).sum(axis=1)

    assert ranks.min() == 1 and ranks.max() > 20  # from copies to strangers
    assert found.rank_B.tolist() == ranks.tolist()
    assert found.nearest.place_B.tolist() == others.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.own_B, to_own, atol=1e-6)
    np.testing.assert_allclose(found.nearest.cosine_B, others.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(found.margin, to_own - others.max(axis=1), atol=2e-6)


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("block", [1, 7, 19])
def test_an_anchor_that_is_in_the_set_twice_is_not_nearer_than_itself(count, block):
    """Wide features, few candidates and odd blocks: here the two copies' cosines differ in their last bits."""
    anchors = unit(np.random.default_rng(0).normal(size=(301, 2048)))
    own = np.arange(3, 3 + count)
    noise = np.random.default_rng(1).normal(size=(count, 2048)) / 20
    found = search(unit(anchors[own] + noise), np.tile(anchors, (2, 1)), own, block)

    assert found.rank_B.tolist() == [1] * count  # the other copy is as near, not nearer
    assert found.nearest.place_B.tolist() == (own + 301).tolist()
    np.testing.assert_allclose(found.margin, np.zeros(count), atol=2e-6)


def test_the_nearest_of_other_images(anchors):
    candidates, _ = batch_of(anchors, 50)
    cosines = candidates @ anchors.T
    for block in (1, 64, 1000):
        as_float32 = (torch.from_numpy(values).float() for values in (candidates, anchors))
        found = nearest_images(*as_float32, block)
        assert found.place_B.tolist() == cosines.argmax(axis=1).tolist()
        np.testing.assert_allclose(found.cosine_B, cosines.max(axis=1), atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Notes how many values the largest tensor has that is made, views of the anchors' features left out."""

    def __init__(self, known):
        super().__init__()
        self.known = known.untyped_storage().data_ptr()
        self.values = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for found in result if isinstance(result, tuple | list) else (result,):
            is_tensor = isinstance(found, torch.Tensor)
            if is_tensor and found.untyped_storage().data_ptr() != self.known:
                self.values = max(self.values, found.numel())
        return result


@pytest.mark.parametrize("count", [100, 300])
def test_no_tensor_is_larger_than_a_batch_and_a_block(anchors, count):
    candidates, own = batch_of(anchors, 20)
    features = torch.from_numpy(anchors[:count]).float()
    unit_BF = torch.from_numpy(candidates).float()
    block = 32
    with LargestTensor(features) as largest:
        search_anchors(unit_BF, features, torch.from_numpy(own), block)
    assert largest.values == len(own) * block  # whatever the number of anchors
