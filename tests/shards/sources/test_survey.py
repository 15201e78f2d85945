"""What a look at every image of a source tells, and that it is kept beside what is made."""

import hashlib
import json
from collections import Counter

import numpy as np
import pytest
from clsp.core import InputError
from clsp.shards import screened
from clsp.shards.sources.digest_cache import remember_digest
from pictures import GREEN, deep_png, encoded, many, opened, picture, put
from PIL import Image


@pytest.fixture
def mixed(tmp_path):
    """Four plain images, one with alpha, one of 12 bits, a moving one and two that are no images."""
    root = many(tmp_path / "mixed", 4)
    put(root / "a.png", picture(GREEN).convert("RGBA"))
    put(root / "b.png", Image.fromarray(np.full((16, 8), 4095, np.uint16)))
    frames = [picture(GREEN), picture()]
    put(root / "c.gif", frames[0], save_all=True, append_images=frames[1:])
    (root / "d.png").write_bytes(b"no image")
    (root / "e.jpg").write_bytes(b"")
    return root


def test_counts_by_headers(mixed):
    findings = opened(mixed, size=8, on_error="skip").findings
    assert findings.formats == {"PNG": 6, "GIF": 1}
    assert findings.modes == {"RGB": 4, "RGBA": 1, "I;16": 1, "P": 1}
    assert findings.bits == {8: 6, 16: 1} and findings.sizes == {"8x8": 6, "8x16": 1}
    assert (findings.smallest_side, findings.largest_side) == (8, 16)
    assert (findings.alpha, findings.animated, findings.largest_16_bit) == (1, 1, 4095)
    assert findings.bits_in_use == 12 and findings.wide == findings.deep_colour == 0
    assert set(findings.unreadable) == {7, 8} and findings.depth == "bytes"


def test_the_digest_is_over_the_files_in_their_order(mixed):
    paths = sorted(mixed.iterdir())
    identities = [hashlib.blake2b(path.read_bytes(), digest_size=16).digest() for path in paths]
    expected = hashlib.blake2b(b"".join(identities), digest_size=16).hexdigest()
    assert opened(mixed, size=8, on_error="skip").digest == expected


def test_only_a_deeper_look_finds_what_is_cut_short(tmp_path):
    root = many(tmp_path / "images", 3)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    content = encoded(noise)
    (root / "01.png").write_bytes(content[: len(content) // 2])
    images = opened(root, size=8)
    assert not images.look().unreadable
    (fault,) = images.look("pixels").unreadable.items()
    assert fault[0] == 1 and "01.png" in fault[1] and images.findings.depth == "pixels"


def test_every_image_is_read_once(mixed, monkeypatch):
    images = opened(mixed, size=8, on_error="skip")
    original = type(images.source).content
    read = Counter()

    def content(self, index):
        read[index] += 1
        return original(self, index)

    monkeypatch.setattr(type(images.source), "content", content)
    rest = screened(images)
    assert rest.digest == images.digest and len(rest) == 7
    assert set(read.values()) == {1}


def test_what_was_found_is_kept_with_the_bits(mixed, tmp_path, monkeypatch):
    kept = tmp_path / "set.source.json"
    first = opened(mixed, size=8, on_error="skip")
    remember_digest(first, kept)

    again = opened(mixed, size=8, on_error="skip")
    monkeypatch.setattr(type(again), "look", lambda *_: pytest.fail("read again"))
    remember_digest(again, kept)
    assert again.findings == first.findings and again.pixels.bits == 12


def test_what_was_found_with_other_settings_is_not_taken(tmp_path):
    """Floats are of no use without a range, and of some with it."""
    root = tmp_path / "floats"
    for number in range(3):
        put(root / f"{number}.tif", Image.fromarray(np.full((8, 8), number / 3, np.float32)))
    kept = tmp_path / "set.source.json"

    with pytest.raises(InputError, match=r"none of the 3 images.*0\.tif\): floats.*anchors\.range"):
        screened(opened(root, size=8, on_error="skip"))
    whole = opened(root, size=8, on_error="skip", range=(0, 1))
    remember_digest(whole, kept)
    assert len(screened(whole)) == 3 and not whole.findings.unreadable
    other = opened(root, size=8)
    remember_digest(other, kept)
    assert "floats" in (other.why_unfit() or "")


def test_images_that_need_a_setting_are_told_of_before_the_work(tmp_path):
    root = many(tmp_path / "images", 2)
    assert opened(root).why_unfit() is None
    (root / "z.png").write_bytes(deep_png(np.full((8, 8, 3), 1023, np.uint16)))
    images = opened(root)
    assert images.findings.deep_colour == 1
    assert "z.png" in (images.why_unfit() or "") and "10 bits" in (images.why_unfit() or "")
    assert opened(root, bits=16).why_unfit() is None


def test_what_is_recorded_of_pixels(mixed, tmp_path):
    """Only what changed one: a set of plain images has the plan that it always had."""
    plain = many(tmp_path / "plain", 2)
    assert opened(plain, background="red", bits=12, range=(0, 9)).pixel_record == {}
    assert opened(mixed, size=8, on_error="skip").pixel_record == {
        "background": "#ffffff",
        "bits": 12,
    }
    settings = {"background": "none", "bits": 16}
    assert opened(mixed, size=8, on_error="skip", **settings).pixel_record == {}
    ranged = opened(mixed, size=8, on_error="skip", background="navy", range=(0, 4095))
    assert ranged.pixel_record == {"background": "#000080", "range": [0, 4095]}


def test_a_listing_from_elsewhere_is_refused(mixed, tmp_path):
    listing = tmp_path / "skipped.json"
    listing.write_text(json.dumps({"skipped": 3}))
    with pytest.raises(InputError, match="is no list of skipped anchors; remove it"):
        screened(opened(mixed, size=8, on_error="skip"), listing)


def test_deep_colour_of_few_bits_is_skipped_where_that_is_asked_for(tmp_path):
    root = many(tmp_path / "images", 2)
    (root / "z.png").write_bytes(deep_png(np.full((8, 8, 3), 1023, np.uint16)))
    rest = screened(opened(root, on_error="skip"))
    assert len(rest) == 2 and "10 bits" in rest.findings.unreadable[2]


def test_headers_alone_tell_all_but_the_digest(mixed, monkeypatch):
    read = opened(mixed, size=8, on_error="skip").look("bytes")
    images = opened(mixed, size=8, on_error="skip")
    told = images.look("header")
    assert told.digest == "" and images.known_findings is None and images.pixels.bits == 12
    differing = {"digest", "depth", "unreadable"}
    assert told.model_dump(exclude=differing) == read.model_dump(exclude=differing)
    assert set(told.unreadable) == set(read.unreadable)
    assert images.digest == read.digest


def test_many_images_are_told_in_their_order(tmp_path):
    root = many(tmp_path / "images", 200)
    paths = sorted(root.iterdir())
    for number in (63, 64, 130):
        paths[number].write_bytes(b"no image")
    images = opened(root, on_error="skip")
    done = []
    findings = images.look("header", lambda looked, count: done.append((looked, count)))
    assert list(findings.unreadable) == [63, 64, 130] and findings.formats == {"PNG": 197}
    assert done[-1] == (200, 200) and [looked for looked, _ in done] == sorted(dict(done))
