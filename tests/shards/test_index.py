import tarfile

import numpy as np
from clsp.shards import ShardSet
from clsp.shards.index import member_offsets
from clsp.shards.layout import shard_path
from hypothesis import given, settings
from hypothesis import strategies as st


def test_offsets_from_sizes_are_where_tarfile_finds_the_data(shard_set):
    shards = ShardSet(shard_set)
    for shard in range(shards.plan.shard_count):
        with tarfile.open(shard_path(shard_set, 0, shard)) as tar:
            expected = [(member.offset_data, member.size) for member in tar.getmembers()]
        rows = list(shards.plan.shard_range(shard))
        found = np.stack([shards.index.offsets[rows], shards.index.sizes[rows]], axis=-1).reshape(-1, 2)
        assert found.tolist() == [list(pair) for pair in expected]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3000), min_size=2, max_size=2), min_size=1, max_size=20), st.integers(1, 5))
def test_offsets_of_any_sizes(sizes, per_shard):
    shards = np.arange(len(sizes)) // per_shard
    offsets = member_offsets(np.array(sizes), shards)
    position = 0
    for row, (first, second) in enumerate(sizes):
        position = 0 if row % per_shard == 0 else position
        for member, size in enumerate((first, second)):
            assert offsets[row, member] == position + 512
            position += 512 + -(-size // 512) * 512
