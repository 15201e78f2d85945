"""The codecs that shard sets could use: bytes, encoding and decoding rates, with every decoder at hand."""

import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torchvision.io
from clsp.shards.format.codec import decode, encode
from made_sets import CANDIDATES, SIZE

CODECS = ("webp", "png", "raw")


def decoders(codec: str) -> dict[str, Callable[[bytes], Any]]:
    """Return the decoders at hand from bytes to an image, by name."""
    if codec == "raw":
        return {
            "NumPy": lambda content: np.frombuffer(content, np.uint8).reshape(SIZE, SIZE, 3).copy()
        }

    public: Any = {"webp": torchvision.io.decode_webp, "png": torchvision.io.decode_png}[codec]
    operator: Any = {
        "webp": torch.ops.image.decode_webp.default,
        "png": torch.ops.image.decode_png.default,
    }[codec]
    found: dict[str, Callable[[bytes], Any]] = {
        "Pillow": lambda content: decode(content, codec, SIZE),
        "torchvision": lambda content: public(torch.frombuffer(content, dtype=torch.uint8)),
        "torch.ops": lambda content: operator(torch.frombuffer(content, dtype=torch.uint8), 0),
    }

    if importlib.util.find_spec("cv2"):
        import cv2

        found["OpenCV"] = lambda content: cv2.imdecode(
            np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR
        )

    return found


def rate(function: Callable[[Any], Any], values: list[Any]) -> float:
    start = time.perf_counter()
    for value in values:
        function(value)
    return len(values) / (time.perf_counter() - start)


def encoder(codec: str) -> Callable[[np.ndarray], bytes]:
    return bytes_of if codec == "raw" else lambda image_HWC: encode(image_HWC, codec)


def measure_codecs(images_NHWC: np.ndarray, rounds: int) -> dict[str, dict[str, Any]]:
    """Measure bytes and rates of each codec; all encoders and decoders take turns in every round."""
    images = list(images_NHWC[:1024])
    contents = {codec: [encoder(codec)(image) for image in images] for codec in CODECS}
    encoding: dict[str, list[float]] = {codec: [] for codec in CODECS}
    decoding = {codec: {name: [] for name in decoders(codec)} for codec in CODECS}

    for _ in range(rounds):
        for codec in CODECS:
            encoding[codec].append(rate(encoder(codec), images))
        for codec in CODECS:
            for name, decoder in decoders(codec).items():
                decoding[codec][name].append(rate(decoder, contents[codec]))

    return {
        codec: {
            "bytes": statistics.mean(map(len, contents[codec])),
            "tar_bytes_per_record": tar_bytes(contents[codec]),
            "encode_per_s": statistics.median(encoding[codec]),
            "decode_per_s": {
                name: statistics.median(rates) for name, rates in decoding[codec].items()
            },
        }
        for codec in CODECS
    }


def tar_bytes(contents: list[bytes]) -> float:
    """Return the bytes of a record of such images and its JSON in a tar."""
    # The JSON: a digest per image, and other facts
    names = ("anchor", *map(str, range(CANDIDATES)))
    digests = dict.fromkeys(names, "0" * 32)
    facts = member_bytes(len(json.dumps(digests, indent=2)) + 200)

    images = statistics.mean(member_bytes(len(content)) for content in contents)
    return (1 + CANDIDATES) * images + facts


def member_bytes(size: int) -> int:
    """Return the bytes of a member of that size in a tar: a header, and content in blocks of 512."""
    return 512 + -(-size // 512) * 512


def bytes_of(image_HWC: np.ndarray) -> bytes:
    return image_HWC.tobytes()


def print_codecs(found: dict[str, dict[str, Any]]) -> None:
    print("\ncodec  bytes/image  tar bytes/record  encode/s  decode/s")
    for codec, row in found.items():
        size = row["bytes"]
        tar = row["tar_bytes_per_record"]
        encoding = row["encode_per_s"]
        decoding = row["decode_per_s"].items()
        rates = ", ".join(f"{name} {value:,.0f}" for name, value in decoding)
        print(f"{codec:5}  {size:11,.0f}  {tar:16,.0f}  {encoding:8,.0f}  {rates}")
