"""Codecs for images of 256x256, and whether decoding a view's crop alone is quicker than decoding the whole image.

    pip install --target /tmp/decoders simplejpeg
    PYTHONPATH=/tmp/decoders python benchmarks/crop_decoding.py

The images are crops of the two photographs that scikit-learn ships. Decoders that are not installed are left out; that
of a part of a JPEG is compiled here, where there are gcc and the headers of libjpeg-turbo. One thread.
"""

import argparse
import ctypes
import ctypes.util
import importlib.util
import io
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision.io  # noqa: F401, registers the operators
from clsp.shards.format.codec import CODECS, decode
from kornia.augmentation import RandomResizedCrop
from PIL import Image
from sklearn.datasets import load_sample_images

SIZE = 256
OPERATORS: dict[str, Any] = {
    "WEBP": torch.ops.image.decode_webp.default,
    "JPEG": torch.ops.image.decode_jpeg.default,
    "PNG": torch.ops.image.decode_png.default,
}
"""Of torchvision."""
LIBJPEG_PART = Path(__file__).with_name("partial_jpeg.c")
TRIED = {
    "webp": CODECS["webp"].settings,
    "webp-80": {"quality": 80, "method": 2},
    "webp-90": {"quality": 90, "method": 2},
    "webp-90, method 0": {"quality": 90, "method": 0},
    "webp-90, method 4": {"quality": 90, "method": 4},
    "jpeg-90 4:2:0": {"quality": 90, "subsampling": 2},
    "jpeg-90 4:4:4": {"quality": 90, "subsampling": 0},
    "jpeg-95 4:2:0": {"quality": 95, "subsampling": 2},
    "jpeg-95 4:4:4": {"quality": 95, "subsampling": 0},
}
"""Settings of Pillow's encoders, by names that begin with the format."""


class Box(NamedTuple):
    """Names a part of an image, in pixels."""

    left: int
    top: int
    width: int
    height: int


Decoder = Callable[[bytes, Box], Any]


def photographs() -> list[np.ndarray]:
    """Return crops of 256x256 out of scikit-learn's photographs, in steps of 64 pixels."""
    found = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[:2]
        # Beside the grid of the blocks by which the photographs were JPEGs once
        for top in range(3, height - SIZE + 1, 64):
            for left in range(5, width - SIZE + 1, 64):
                found.append(np.ascontiguousarray(photograph[top : top + SIZE, left : left + SIZE]))
    return found


def encoded(image: np.ndarray, name: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, name.split("-")[0], **TRIED[name])
    return buffer.getvalue()


def seconds_of(
    works: Mapping[str, Callable[[int], object]], count: int, rounds: int
) -> dict[str, float]:
    """Return the processor seconds that a call of each work takes: the median over rounds, in which they take turns.

    Processor time, so that other programs on the machine disturb little.
    """
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.process_time()
            for number in range(count):
                work(number)
            found[name].append((time.process_time() - started) / count)

    return {name: statistics.median(seconds) for name, seconds in found.items()}


def as_tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


# The codecs


def measure_codecs(images: Sequence[np.ndarray], rounds: int) -> None:
    """Print bytes, error and rates of all codecs that were tried."""
    encoding = {}
    decoding = {}
    facts = {}
    for name in TRIED:
        contents = [encoded(image, name) for image in images]
        tensors = [as_tensor(content) for content in contents]
        operator = OPERATORS[name.split("-")[0].upper()]
        encoding[name] = partial(_encode_nth, images, name)
        decoding[name] = partial(_decode_nth, tensors, operator)

        errors = []
        for image, tensor in zip(images, tensors, strict=True):
            decoded = operator(tensor, 0).permute(1, 2, 0).numpy()
            errors.append(np.square(image.astype(float) - decoded).mean())
        mean_error = float(np.mean(errors))
        psnr = 10 * np.log10(255**2 / mean_error) if mean_error else float("inf")
        facts[name] = (statistics.mean(map(len, contents)), psnr)

    encoding_seconds = seconds_of(encoding, len(images), rounds)
    decoding_seconds = seconds_of(decoding, len(images), rounds)
    print(f"{len(images)} images of {SIZE}x{SIZE}\n")
    print("codec              bytes/image   PSNR dB   encode/s   decode/s")
    for name, (size, psnr) in facts.items():
        encode_rate = 1 / encoding_seconds[name]
        decode_rate = 1 / decoding_seconds[name]
        print(f"{name:18} {size:11,.0f} {psnr:9.1f} {encode_rate:10,.0f} {decode_rate:10,.0f}")


def _encode_nth(images: Sequence[np.ndarray], name: str, number: int) -> bytes:
    return encoded(images[number], name)


def _decode_nth(tensors: Sequence[torch.Tensor], operator: Any, number: int) -> torch.Tensor:
    return operator(tensors[number], 0)


def _crop_nth(
    contents: Sequence[bytes], boxes: Sequence[Box], decoder: Decoder, number: int
) -> object:
    return decoder(contents[number], boxes[number])


def compare_decoders(images: Sequence[np.ndarray]) -> None:
    """Say whether Pillow and torchvision decode the codecs of sets to the same pixels."""
    print()
    for name, codec in CODECS.items():
        differing = 0
        for image in images:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, codec.format, **codec.settings)
            content = buffer.getvalue()
            by_torchvision = OPERATORS[codec.format](as_tensor(content), 0).permute(1, 2, 0).numpy()
            differing += not np.array_equal(decode(content, name, SIZE), by_torchvision)
        print(f"{name}: Pillow and torchvision differ in {differing} of {len(images)} images")


# Decoding of crops


def draw_boxes(smallest: float, count: int) -> list[Box]:
    """Draw the boxes of kornia's RandomResizedCrop."""
    torch.manual_seed(0)
    crop = RandomResizedCrop((SIZE, SIZE), scale=(smallest, 1.0))
    corners = crop.generate_parameters(torch.Size((count, 3, SIZE, SIZE)))["src"]
    boxes = []
    for corner in corners.long().tolist():
        (left, top), (right, bottom) = corner[0], corner[2]
        boxes.append(Box(left, top, right - left + 1, bottom - top + 1))
    return boxes


def jpeg_decoders(output: int) -> dict[str, Decoder]:
    """Return decoders of (a part of) a JPEG from which a view of `output` pixels can be made."""

    def by_torchvision(content: bytes, box: Box) -> Any:
        return OPERATORS["JPEG"](as_tensor(content), 0)

    def by_draft(content: bytes, box: Box) -> Any:
        with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
            if min(box.width, box.height) >= 2 * output:
                image.draft("RGB", (SIZE // 2, SIZE // 2))
            return np.asarray(image)

    found: dict[str, Decoder] = {
        "torchvision, whole": by_torchvision,
        "Pillow, half size where that is enough": by_draft,
    }

    if importlib.util.find_spec("simplejpeg"):
        import simplejpeg

        def by_simplejpeg(content: bytes, box: Box) -> Any:
            is_enough = min(box.width, box.height) >= 2 * output
            side = SIZE // 2 if is_enough else SIZE
            return simplejpeg.decode_jpeg(content, min_height=side, min_width=side)

        found["simplejpeg, half size where that is enough"] = by_simplejpeg

    part = compiled_part()
    if part is not None:
        found["libjpeg-turbo, the crop's rows and blocks"] = part
    return found


def compiled_part() -> Decoder | None:
    """Compile the decoder of a part of a JPEG; None where that cannot be done here."""
    library = Path(tempfile.mkdtemp()) / "partial_jpeg.so"
    command = ["gcc", "-O2", "-shared", "-fPIC", str(LIBJPEG_PART), "-o", str(library), "-ljpeg"]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    function = ctypes.CDLL(str(library)).decode_part

    def by_part(content: bytes, box: Box) -> Any:
        out_HWC = np.empty((box.height, box.width, 3), np.uint8)
        pointer = out_HWC.ctypes.data_as(ctypes.c_void_p)
        function(content, ctypes.c_ulong(len(content)), *box, pointer)
        return out_HWC

    return by_part


class WebPOptions(ctypes.Structure):
    """Is libwebp's WebPDecoderOptions (decode.h, ABI 0x0209)."""

    _fields_ = [
        ("bypass_filtering", ctypes.c_int),
        ("no_fancy_upsampling", ctypes.c_int),
        ("use_cropping", ctypes.c_int),
        ("crop_left", ctypes.c_int),
        ("crop_top", ctypes.c_int),
        ("crop_width", ctypes.c_int),
        ("crop_height", ctypes.c_int),
        ("use_scaling", ctypes.c_int),
        ("scaled_width", ctypes.c_int),
        ("scaled_height", ctypes.c_int),
        ("others", ctypes.c_int * 4),
        ("pad", ctypes.c_uint32 * 5),
    ]


class WebPConfig(ctypes.Structure):
    """Is libwebp's WebPDecoderConfig: the features found (40 bytes), the output with a union of 80, the options."""

    _fields_ = [
        ("features", ctypes.c_uint32 * 10),
        ("colorspace", ctypes.c_int),
        ("sizes", ctypes.c_int * 3),
        ("pixels", ctypes.c_void_p),
        ("stride", ctypes.c_int),
        ("bytes", ctypes.c_size_t),
        ("rest_of_union", ctypes.c_uint8 * 56),
        ("pad", ctypes.c_uint32 * 4),
        ("private", ctypes.c_void_p),
        ("options", WebPOptions),
    ]


def webp_decoders(output: int) -> dict[str, Decoder]:
    """Return decoders of (a part of) a WebP; of libwebp with its own cropping and scaling."""

    def by_torchvision(content: bytes, box: Box) -> Any:
        return OPERATORS["WEBP"](as_tensor(content), 0)

    found: dict[str, Decoder] = {"torchvision, whole": by_torchvision}
    name = ctypes.util.find_library("webp")
    if name is None:
        return found
    library = ctypes.CDLL(name)

    def by_libwebp(content: bytes, box: Box | None, scaled: bool) -> np.ndarray:
        config = WebPConfig()
        library.WebPInitDecoderConfigInternal(ctypes.byref(config), 0x0209)
        options = config.options
        width = height = SIZE
        if box is not None:
            options.use_cropping = 1
            options.crop_left, options.crop_top, width, height = box
            options.crop_width, options.crop_height = width, height
        if scaled:
            options.use_scaling = 1
            width = height = options.scaled_width = options.scaled_height = output

        if library.WebPDecode(content, ctypes.c_size_t(len(content)), ctypes.byref(config)):
            raise ValueError("does not decode")
        pixels = ctypes.string_at(config.pixels, height * config.stride)
        library.WebPFreeDecBuffer(ctypes.byref(config, WebPConfig.colorspace.offset))
        return np.frombuffer(pixels, np.uint8).reshape(height, width, 3)

    found["libwebp, whole"] = lambda content, box: by_libwebp(content, None, False)
    found["libwebp, the crop"] = lambda content, box: by_libwebp(content, box, False)
    found["libwebp, the crop, scaled"] = lambda content, box: by_libwebp(content, box, True)
    return found


def measure_crops(images: Sequence[np.ndarray], rounds: int) -> None:
    cases = [
        ("jpeg-95", "jpeg-95 4:4:4", jpeg_decoders),
        ("jpeg-95 of halved colours", "jpeg-95 4:2:0", jpeg_decoders),
        ("webp-90", "webp-90", webp_decoders),
        ("webp", "webp", webp_decoders),
    ]
    for output in (96, 224):
        for smallest in (0.08, 0.2):
            boxes = draw_boxes(smallest, len(images))
            print(f"\ncrops of {smallest:g} to 1 of the area, views of {output} pixels")
            for title, name, decoders in cases:
                contents = [encoded(image, name) for image in images]
                works = {}
                for decoder_name, decoder in decoders(output).items():
                    works[decoder_name] = partial(_crop_nth, contents, boxes, decoder)

                seconds = seconds_of(works, len(images), rounds)
                whole = seconds["torchvision, whole"]
                for decoder_name, spent in seconds.items():
                    a_view = whole / spent
                    a_pair = 2 * whole / (3 * spent)
                    print(
                        f"  {title:26} {decoder_name:44} {1e6 * spent:7.0f} us  {a_view:5.2f} x a view, "
                        f"{a_pair:5.2f} x a pair"
                    )

    print(
        "\nA pair is an anchor of two views and a candidate of one: two whole images, or three crops."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = photographs()
    measure_codecs(images, options.rounds)
    compare_decoders(images)
    measure_crops(images, options.rounds)


if __name__ == "__main__":
    main()
