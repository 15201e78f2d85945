import tarfile

import numpy as np
from clsp.shards import ShardSet
from clsp.shards.format.index import member_offsets
from clsp.shards.format.layout import shard_path
from hypothesis import given, settings
from hypothesis import strategies as st


def test_offsets_from_sizes_are_where_tarfile_finds_the_data(shard_set):
    shards = ShardSet(shard_set)
    for shard in range(shards.plan.shard_count):
        with tarfile.open(shard_path(shard_set, 0, shard)) as tar:
            expected = [(member.offset_data, member.size) for member in tar.getmembers()]
        rows = shards.layers[0].index.rows(shard)
        found = np.stack([rows.offsets_NM, rows.sizes_NM], axis=-1).reshape(-1, 2)
        assert found.tolist() == [list(pair) for pair in expected]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3000), min_size=2, max_size=2), min_size=1, max_size=20))
def test_offsets_of_any_sizes(sizes):
    offsets = member_offsets(np.array(sizes))
    position = 0
    for row, (first, second) in enumerate(sizes):
        for member, size in enumerate((first, second)):
            assert offsets[row, member] == position + 512
            position += 512 + -(-size // 512) * 512
