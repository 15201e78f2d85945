import hashlib
import io
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision.io
from clsp.core import WorkError, pixel_digest
from clsp.shards.format.codec import CODECS, check_header, decode, encode
from clsp.shards.format.config import ShardsConfig
from clsp.shards.reading.pairs import DECODERS, decode_image
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pictures import encoded, photograph
from PIL import Image

LOSSY = ["webp-90", "jpeg-95"]


@pytest.mark.parametrize("codec", ["webp", "png"])
@settings(max_examples=30, deadline=None)
@given(image=arrays(np.uint8, st.sampled_from([(1, 1, 3), (8, 8, 3), (33, 33, 3)])))
def test_both_codecs_are_lossless(codec, image):
    assert np.array_equal(decode(encode(image, codec), codec, image.shape[0]), image)


@pytest.mark.parametrize("codec", ["webp", "png", *LOSSY])
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


def test_recipes_readers_and_writers_know_the_same_codecs():
    in_recipes = set(ShardsConfig.model_fields["codec"].annotation.__args__)
    assert in_recipes == set(CODECS) == set(DECODERS)


@pytest.mark.parametrize(("codec", "least"), [("webp-90", 33), ("jpeg-95", 38)])
def test_lossy_codecs_lose_little_of_a_photograph(codec, least):
    image = photograph(size=256)
    content = encode(image, codec)
    error = np.square(decode(content, codec, 256).astype(float) - image).mean()
    assert least < 10 * np.log10(255**2 / error) < 60
    assert len(content) < len(encode(image, "webp")) / 2


@pytest.mark.parametrize("size", [1, 8, 33, 256])
@pytest.mark.parametrize("codec", LOSSY)
def test_every_decoder_gives_the_same_pixels(codec, size):
    content = encode(photograph(7, size), codec)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    assert np.array_equal(decode(content, codec, size), expected)

    read = torchvision.io.decode_jpeg if codec == "jpeg-95" else torchvision.io.decode_webp
    by_torchvision = read(torch.frombuffer(bytearray(content), dtype=torch.uint8))
    assert np.array_equal(by_torchvision.permute(1, 2, 0), expected)
    assert np.array_equal(decode_image(content, codec, size).permute(1, 2, 0), expected)


PROGRAM = """
import hashlib, sys
import numpy as np
from clsp.shards.format.codec import encode
image = np.load(sys.argv[1])
for codec in sys.argv[2:]:
    print(hashlib.sha256(encode(image, codec)).hexdigest())
"""


def test_another_process_gives_the_same_bytes(tmp_path):
    np.save(tmp_path / "image.npy", photograph(5, 256))
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "image.npy"), *LOSSY]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    here = [hashlib.sha256(encode(photograph(5, 256), codec)).hexdigest() for codec in LOSSY]
    assert done.stdout.split() == here


def foreign() -> dict[str, bytes]:
    """Images of 16x16 that are of no codec of ours, or of another one."""
    rgb = Image.fromarray(photograph(size=16))
    return {
        "lossless WebP": encode(photograph(size=16), "webp"),
        "lossy WebP": encode(photograph(size=16), "webp-90"),
        "WebP with alpha": encoded(rgb.convert("RGBA").rotate(30), "WEBP", quality=90),
        "animated WebP": encoded(
            rgb, "WEBP", quality=90, save_all=True, append_images=[rgb.rotate(90)]
        ),
        "JPEG": encode(photograph(size=16), "jpeg-95"),
        "progressive JPEG": encoded(rgb, "JPEG", progressive=True),
        "grey JPEG": encoded(rgb.convert("L"), "JPEG"),
        "JPEG of four channels": encoded(rgb.convert("CMYK"), "JPEG"),
        "JPEG cut behind its tables": encode(photograph(size=16), "jpeg-95")[:150],
    }


@pytest.mark.parametrize(
    ("codec", "taken"), [("webp", "lossless WebP"), ("webp-90", "lossy WebP"), ("jpeg-95", "JPEG")]
)
def test_only_images_of_the_codec_are_taken(codec, taken):
    for kind, content in foreign().items():
        if kind == taken:
            check_header(content, codec, 16)
            continue
        with pytest.raises(WorkError, match="does not decode as"):
            check_header(content, codec, 16)


def test_a_jpeg_with_a_comment_and_another_order_of_segments_is_taken():
    content = encoded(Image.fromarray(photograph(size=16)), "JPEG", comment=b"x" * 300, quality=80)
    check_header(content, "jpeg-95", 16)
    assert decode(content, "jpeg-95", 16).shape == (16, 16, 3)
