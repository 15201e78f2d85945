import hashlib
import io

import numpy as np
import pytest
from clsp.core import WorkError, pixel_digest
from clsp.shards.format.codec import decode, encode
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image


@pytest.mark.parametrize("codec", ["webp", "png"])
@settings(max_examples=30, deadline=None)
@given(image=arrays(np.uint8, st.sampled_from([(1, 1, 3), (8, 8, 3), (33, 33, 3)])))
def test_both_codecs_are_lossless(codec, image):
    assert np.array_equal(decode(encode(image, codec), codec, image.shape[0]), image)


@pytest.mark.parametrize("codec", ["webp", "png"])
def test_damaged_or_foreign_bytes_are_refused(codec):
    content = encode(np.zeros((8, 8, 3), np.uint8), codec)
    with pytest.raises(WorkError, match="does not decode"):
        decode(content[: len(content) // 2], codec, 8)
    with pytest.raises(WorkError, match="8x8, expected 16x16"):
        decode(content, codec, 16)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "BMP")
    with pytest.raises(WorkError, match="does not decode"):
        decode(buffer.getvalue(), codec, 8)


def test_pixel_digest_is_the_specified_hash():
    image = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    assert (
        pixel_digest(image)
        == hashlib.blake2b(b"2x2x3:" + bytes(range(12)), digest_size=16).hexdigest()
    )
