"""docs/format.md against the bytes: a reader written from the page alone, without clsp's own."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from clsp.generate import Stream, keyed_normal, noise_keys
from clsp.shards.format.plan import read_plan
from clsp.shards.reading.candidates import draw_candidate, draw_candidates
from clsp.shards.reading.order import epoch_order

PAGE = Path(__file__).parents[2].joinpath("docs", "format.md").read_text()


def test_check_values_of_the_noise():
    text = PAGE.split("the first four:")[1].split(".\n\n")[0]
    expected = [float(number) for number in re.findall(r"`(-?[\d.]+)`", text)]
    found = keyed_normal(
        noise_keys(0, ["train_00000000"], torch.device("cpu")), (4,), 999, 0, Stream.STEP
    )
    assert len(expected) == 4 and np.array_equal(found[0].numpy(), np.array(expected, np.float32))


def test_members_are_where_the_page_says(shard_set):
    table = pq.read_table(shard_set / "layer-000.parquet").to_pylist()
    start, shard = 0, -1
    for row in table:
        if row["shard"] != shard:
            start, shard = 0, row["shard"]
            tar = (shard_set / "layer-000" / f"shard-{shard:06d}.tar").read_bytes()
        for name, size in zip(
            ["anchor.webp", "c000.webp", "c001.webp", "c002.webp", "json"],
            row["sizes"],
            strict=True,
        ):
            header = tar[start : start + 512]
            assert header[:100].rstrip(b"\0").decode() == f"{row['key']}.{name}"
            data = tar[start + 512 : start + 512 + size]
            start += 512 + -(-size // 512) * 512
        assert json.loads(data)["index"] == row["index"]


def test_the_digests_are_the_ones_of_the_page(shard_set, digits):
    content = json.loads((shard_set / "plan.json").read_text())
    identities = [
        hashlib.blake2b(b"8x8x3:" + anchor.image.tobytes(), digest_size=16).digest()
        for anchor in digits
    ]
    assert (
        content["source"]["digest"]
        == hashlib.blake2b(b"".join(identities), digest_size=16).hexdigest()
    )
    name = hashlib.sha256((shard_set / "plan.json").read_bytes()).hexdigest()
    assert (
        name
        == read_plan(shard_set).digest
        == json.loads((shard_set / "manifest.json").read_text())["plan"]
    )


def name_hash(*parts: object) -> int:
    text = b"\0".join(str(part).encode() for part in parts)
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def test_the_reading_order_is_the_one_of_the_page():
    def permuted(count, *name):
        return np.argsort(np.random.Philox(key=name_hash(*name)).random_raw(count), kind="stable")

    shards = permuted(20, "p", 3, 7, "shards")
    expected: list[int] = []
    for window in range(2):
        positions = [
            shard * 5 + record
            for shard in shards[window * 16 : window * 16 + 16]
            for record in range(5)
        ]
        expected += [
            positions[place] for place in permuted(len(positions), "p", 3, 7, "records", window)
        ]
    assert epoch_order([5] * 20, "p", 3, 7).tolist() == expected
    assert (
        draw_candidate(3, 7, "train_00000001", 8)
        == name_hash(3, 7, "train_00000001", "candidate") % 8
    )
    left = list(range(8))
    several = [left.pop(name_hash(3, 7, "train_00000001", "candidate") % 8)]
    for place in (1, 2):
        several.append(left.pop(name_hash(3, 7, "train_00000001", "candidate", place) % len(left)))
    assert draw_candidates(3, 7, "train_00000001", 8, 3) == several
