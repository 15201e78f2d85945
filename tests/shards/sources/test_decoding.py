"""Pixels become 8-bit RGB as a viewer would show them, or a line says which key they need."""

import io
import struct
import warnings

import numpy as np
import pytest
from clsp.cli.recipe import load_recipe
from clsp.core import InputError
from clsp.shards.sources.decoding import Pixels, decode_rgb, parse_colour, read_header
from pictures import BLUE, GREEN, RED, colours, deep_png, encoded, many, middle, opened, picture
from PIL import Image, ImageOps

WHITE = (255, 255, 255)


def half_seen(mode: str = "RGBA") -> Image.Image:
    """Green on the right; the left half is transparent, and black is hidden in it."""
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[:, 4:] = (*GREEN, 255)
    image = Image.fromarray(pixels)
    if mode == "P":
        flat = Image.fromarray(np.repeat(np.uint8([[0] * 4 + [1] * 4]), 8, axis=0), "L")
        palette = flat.convert("P")
        palette.putpalette([0, 0, 0, *GREEN])
        return palette
    return image.convert(mode)


def save(path, image: Image.Image, kind: str = "PNG", **options):
    path.write_bytes(encoded(image, kind, **options))
    return path


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (half_seen(), "PNG", {}),
        (half_seen(), "WEBP", {"lossless": True, "exact": True}),
        (half_seen(), "TIFF", {}),
        (half_seen("P"), "PNG", {"transparency": 0}),
        (half_seen("P"), "GIF", {"transparency": 0}),
        (half_seen().convert("RGB"), "PNG", {"transparency": (0, 0, 0)}),
    ],
)
def test_what_is_transparent_becomes_the_background(tmp_path, image, kind, options):
    save(tmp_path / f"a.{kind.lower()}", image, kind, **options)
    for background, seen in (("white", WHITE), ("#0000ff", BLUE), ("none", (0, 0, 0))):
        pixels = opened(tmp_path, background=background)[0].image
        assert (pixels[:, :4] == seen).all() and (pixels[:, 4:] == GREEN).all()


def test_grey_with_alpha_is_mixed_by_its_share(tmp_path):
    pixels = np.zeros((8, 8, 2), np.uint8)
    pixels[..., 0] = 100
    pixels[..., 1] = 51  # a fifth
    save(tmp_path / "a.png", Image.fromarray(pixels))
    assert (opened(tmp_path)[0].image == round(100 / 5 + 255 * 4 / 5)).all()
    assert (opened(tmp_path, background="black")[0].image == 20).all()


def test_opaque_alpha_is_plain_colour(tmp_path):
    plain = picture(GREEN, 5)
    save(tmp_path / "a.png", plain.convert("RGBA"))
    for background in ("white", "red", "none"):
        found = opened(tmp_path, background=background)[0].image
        assert np.array_equal(found, np.asarray(plain))


def test_colours_of_the_background():
    assert parse_colour("navy") == (0, 0, 128) and parse_colour("#0A0b0C") == (10, 11, 12)
    with pytest.raises(InputError, match="anchors.background"):
        load_recipe("digits", ["anchors.background=nocolour"])


def ramp(largest: int) -> np.ndarray:
    return np.linspace(0, largest, 64).astype(np.uint16).reshape(8, 8)


def deep_folder(path, *values: np.ndarray):
    path.mkdir()
    for number, grey in enumerate(values):
        save(path / f"{number}.png", Image.fromarray(grey))
    return path


@pytest.mark.parametrize(("bits", "largest"), [(10, 1023), (12, 4095), (12, 3000), (9, 511)])
def test_few_bits_in_16_are_scaled_by_those_in_use(tmp_path, bits, largest):
    values = ramp(largest)
    images = opened(deep_folder(tmp_path / "x", values // 4, values))
    assert np.array_equal(images[1].image[..., 0], values >> (bits - 8))
    assert np.array_equal(images[0].image[..., 2], (values // 4) >> (bits - 8))
    assert images.pixels.bits == bits


def test_all_16_bits_keep_their_upper_8(tmp_path):
    """As in earlier versions."""
    values = ramp(65535)
    images = opened(deep_folder(tmp_path / "x", values))
    assert np.array_equal(images[0].image[..., 0], values >> 8)


def test_bits_of_the_recipe_go_before_measured_ones(tmp_path):
    values = ramp(4095)
    folder = deep_folder(tmp_path / "x", values)
    assert np.array_equal(opened(folder, bits=16)[0].image[..., 0], values >> 8)
    found = opened(folder, bits=10)[0].image[..., 0]
    assert np.array_equal(found, np.minimum(values >> 2, 255))
    assert (opened(folder, range=(0, 4095))[0].image[..., 0] == np.rint(values / 4095 * 255)).all()


def test_bits_are_those_of_the_images_that_are_used(tmp_path):
    folder = deep_folder(tmp_path / "x", ramp(1023), ramp(4095))
    assert opened(folder, limit=1)[0].image.max() == 255


def test_16_bit_colour(tmp_path):
    """Pillow reads its upper 8 bits; where fewer are in use, black images are no answer."""
    deep = np.random.default_rng(0).integers(0, 65536, (8, 8, 3)).astype(np.uint16)
    deep[0, 0, 0] = 65535
    (tmp_path / "a.png").write_bytes(deep_png(deep))
    assert np.array_equal(opened(tmp_path)[0].image, deep >> 8)

    (tmp_path / "a.png").write_bytes(deep_png(deep >> 4))
    with pytest.raises(InputError, match=r"a\.png\): 16-bit colour with 12 bits in use.*bits=16"):
        opened(tmp_path)
    assert np.array_equal(opened(tmp_path, bits=16)[0].image, deep >> 12)
    with pytest.raises(InputError, match="anchors.range is for grey"):
        opened(tmp_path, range=(0, 4095))


@pytest.mark.parametrize("channels", [2, 4])
def test_full_alpha_does_not_hide_that_few_bits_are_in_use(tmp_path, channels):
    deep = np.full((8, 8, channels), 4095, np.uint16)
    deep[..., -1] = 65535
    (tmp_path / "a.png").write_bytes(deep_png(deep))
    with pytest.raises(InputError, match="with 12 bits in use"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), "floats from 0 to 1"),
        (np.linspace(-5, 5, 64, dtype=np.float32), "floats from -5 to 5"),
        (np.linspace(0, 70000, 64).astype(np.int32), "32-bit integers from 0 to 70000"),
    ],
)
def test_floats_and_32_bit_integers_need_a_range(tmp_path, values, message):
    values = values.reshape(8, 8)
    save(tmp_path / "a.tif", Image.fromarray(values), "TIFF")
    with pytest.raises(InputError, match=rf"a\.tif\): {message}; set anchors\.range"):
        opened(tmp_path)

    low, high = float(values.min()), float(values.max())
    expected = np.rint((values - low) / (high - low) * 255)
    assert np.array_equal(opened(tmp_path, range=(low, high))[0].image[..., 1], expected)
    darker = opened(tmp_path, range=(low, 2 * high - low))[0].image  # half of the range is in use
    assert darker.max() in (127, 128)
    clipped = opened(tmp_path, range=(low, (low + high) / 2))[0].image
    assert clipped.max() == 255 and (clipped == 255).mean() > 0.4


def test_a_range_leaves_8_bit_images_alone(tmp_path):
    many(tmp_path, 1, GREEN)
    assert middle(opened(tmp_path, range=(0.0, 1.0))) == GREEN


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_images_are_brought_upright_as_pillow_does(orientation, kind):
    exif = Image.Exif()
    exif[0x0112] = orientation
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8))
    content = encoded(wide, kind, exif=exif)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    assert np.array_equal(decode_rgb(content, Pixels(None)), expected)


def test_16_bit_grey_is_brought_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = ramp(65535)
    save(tmp_path / "a.png", Image.fromarray(values), exif=exif)
    assert np.array_equal(opened(tmp_path)[0].image[..., 0], np.rot90(values, -1) >> 8)


def broken_exif() -> bytes:
    """Turned by 90 degrees, and then a resolution that is written as the text 72."""
    turned = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack("<HHI4s", 0x011A, 2, 3, b"72\0\0")
    entries = struct.pack("<IH", 8, 2) + turned + resolution + struct.pack("<I", 0)
    return b"Exif\0\0II*\0" + entries


@pytest.mark.parametrize(
    ("kind", "exif", "turns"),
    [
        ("JPEG", broken_exif(), 1),
        ("PNG", b"Exif\0\0\0\x08\0\x02\x01\x12\0\x03", 0),
        ("PNG", b"Exif\0\0nonsense", 0),
        ("WEBP", b"Exif\0\0", 0),
        ("JPEG", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", 0),
    ],
)
def test_a_broken_exif_block_is_no_reason_to_refuse_an_image(tmp_path, kind, exif, turns):
    corner = np.zeros((8, 8, 3), np.uint8)
    corner[:4, :4] = 255
    save(tmp_path / f"a.{kind.lower()}", Image.fromarray(corner), kind, exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's
        images = opened(tmp_path)
        found = images[0].image[..., 0] > 127
        images.look()
    assert np.array_equal(found, np.rot90(corner[..., 0] > 127, -turns))


def test_other_modes_become_colour(tmp_path):
    plain = picture(RED)
    for mode in ("L", "1", "CMYK", "YCbCr"):
        content = encoded(plain.convert(mode), "TIFF")
        expected = np.asarray(plain.convert(mode).convert("RGB"))
        assert np.array_equal(decode_rgb(content, Pixels(None)), expected)


def test_the_first_frame_of_a_moving_image(tmp_path):
    frames = [picture(colour).convert("P") for colour in (GREEN, BLUE)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert read_header(content).is_animated
    assert tuple(decode_rgb(content, Pixels(None))[4, 4]) == GREEN


def test_headers_say_what_an_image_is():
    header = read_header(encoded(half_seen(), "PNG"))
    assert (header.format, header.mode, header.width, header.bits) == ("PNG", "RGBA", 8, 8)
    assert header.has_alpha and not header.is_animated and not header.has_broken_exif
    deep = read_header(deep_png(np.zeros((4, 6, 3), np.uint16)))
    assert (deep.width, deep.height, deep.bits, deep.channels) == (6, 4, 16, 3)
    assert read_header(colours(1)[0]).bits == 8 and not read_header(colours(1)[0]).has_alpha


@pytest.mark.parametrize("content", [b"", b"no image at all", colours(1)[0][:50]])
def test_no_message_shows_an_object(tmp_path, content):
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(InputError) as error:
        opened(tmp_path)
    told = str(error.value)
    assert "train_00000000" in told and "bad.png" in told and "replace or remove it" in told
    assert "object at 0x" not in told and "\n" not in told


def five_bands() -> bytes:
    """An image of satellite bands, by hand: a TIFF of 8x8 pixels with five channels."""
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 0)]
    entries += [(277, 3, 5), (278, 3, 8), (279, 4, 320), (284, 3, 1)]
    start = 8 + 2 + 12 * len(entries) + 4
    tiff = b"II*\0" + struct.pack("<IH", 8, len(entries))
    for tag, kind, value in entries:
        tiff += struct.pack("<HHII", tag, kind, 1, start if tag == 273 else value)
    return tiff + b"\0" * 4 + bytes(320)


def test_many_channels_are_refused_by_name(tmp_path):
    (tmp_path / "bands.tif").write_bytes(five_bands())
    with pytest.raises(InputError, match=r"bands\.tif\) does not decode .*no image format"):
        opened(tmp_path)
