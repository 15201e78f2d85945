"""The anchors' latents, encoded once: their values, parts that survive a kill, and what is refused."""

import json
import resource
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from clsp.core import InputError, WorkError
from clsp.generate import (
    Autoencoder,
    encode_anchors,
    load_autoencoder,
    load_diffusion,
    read_autoencoder,
    train_diffusion,
)
from clsp.generate.encoded_anchors import EncodedAnchors
from clsp.generate.train_images import flip_half, image_batches
from clsp.shards import AnchorsConfig, ImageSource
from diffusers import AutoencoderKL, DDPMPipeline
from latent_models import SCALING, SIZE, in_model_range, save_autoencoder
from pictures import photograph, put
from PIL import Image
from places import contents
from small_diffusion import SMALL
from torchvision.io import read_image

CONFIG = SMALL.model_copy(update={"sample_steps": 4})


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("autoencoder") / "ae")


@pytest.fixture
def autoencoder(folder) -> Autoencoder:
    return load_autoencoder(read_autoencoder(str(folder)))


@pytest.fixture(scope="module")
def anchors() -> ImageSource:
    return ImageSource(AnchorsConfig(limit=42, size=SIZE))


def expected_latents(folder: Path, anchors: ImageSource) -> np.ndarray:
    """Return latents `(N, 2, C, h, w)` by diffusers alone: of the images and of their mirror images."""
    vae = AutoencoderKL.from_pretrained(folder).eval()
    x = in_model_range(np.stack([anchor.image for anchor in anchors]))
    with torch.no_grad():
        versions = [vae.encode(v).latent_dist.mode() * SCALING for v in (x, x.flip(-1))]
    return torch.stack(versions, dim=1).numpy()


@pytest.mark.parametrize("workers", [0, 2])
def test_latents_are_those_of_the_images_and_of_their_mirror_images(
    folder, autoencoder, anchors, tmp_path, workers
):
    training = encode_anchors(anchors, autoencoder, tmp_path, flip=True, workers=workers)
    expected = expected_latents(folder, anchors)
    files = sorted((tmp_path / "latents").glob("*.npy"))
    assert len(files) == 6  # of 8 anchors each, the last of 2
    stored = np.concatenate([np.load(file, mmap_mode="r") for file in files])
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored, expected, atol=2e-3, rtol=2e-3)

    # A mirrored image's latent is not the mirrored latent
    assert np.abs(stored[:, 1] - stored[:, 0, :, :, ::-1]).max() > 0.05

    # By place
    places = [41, 0, 8, 7]
    found = training.encoded.rows(places).numpy()
    np.testing.assert_array_equal(found, stored[places].astype(np.float32))

    # Their range
    values = stored.astype(np.float64).transpose(2, 0, 1, 3, 4).reshape(4, -1)
    ranges = np.array(training.record.ranges)
    np.testing.assert_array_equal(ranges, np.stack([values.min(1), values.max(1)], axis=1))
    np.testing.assert_allclose(training.record.deviations, values.std(1), rtol=1e-6)


def test_many_parts_take_few_file_descriptors(tmp_path):
    encoded = EncodedAnchors(tmp_path, count=200 * 1024, flip=False)
    assert encoded.parts == 200
    for part in range(encoded.parts):
        np.save(encoded.array(part), np.full((1024, 1, 1, 1, 1), part, np.float16))

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    limit = highest + 150
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        for _ in range(2):  # the second time they are mapped anew
            found = encoded.rows(range(0, encoded.count, 1024)).flatten().tolist()
            assert found == list(range(200))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class CrashError(Exception):
    pass


def test_finished_parts_are_not_made_again(autoencoder, anchors, tmp_path, monkeypatch):
    encode_anchors(anchors, autoencoder, tmp_path / "whole", flip=True)
    original = Autoencoder.encode
    calls = []

    def encode(self, *arguments):
        calls.append(1)
        if len(calls) == 7:  # the fourth part: two versions of each
            raise CrashError
        return original(self, *arguments)

    monkeypatch.setattr(Autoencoder, "encode", encode)
    with pytest.raises(CrashError):
        encode_anchors(anchors, autoencoder, tmp_path / "parts", flip=True)
    finished = sorted((tmp_path / "parts" / "latents").glob("part-*"))
    assert len(finished) == 6  # of three parts
    times = [path.stat().st_mtime_ns for path in finished]

    encode_anchors(anchors, autoencoder, tmp_path / "parts", flip=True)
    assert [path.stat().st_mtime_ns for path in finished] == times
    assert len(calls) == 7 + 6
    assert contents(tmp_path / "parts") == contents(tmp_path / "whole")

    encode_anchors(anchors, autoencoder, tmp_path / "parts", flip=True)
    assert len(calls) == 7 + 6


@pytest.mark.parametrize("damage", ["cut", "flipped bit", "no record", "bad record"])
def test_a_damaged_part_is_made_again(autoencoder, anchors, tmp_path, damage):
    encode_anchors(anchors, autoencoder, tmp_path, flip=False)
    before = contents(tmp_path)
    array = tmp_path / "latents" / "part-000002.npy"
    content = bytearray(array.read_bytes())
    if damage == "cut":
        array.write_bytes(content[:-10])
    elif damage == "flipped bit":
        content[-1] ^= 1
        array.write_bytes(content)
    elif damage == "no record":
        array.with_suffix(".json").unlink()
    else:
        array.with_suffix(".json").write_text("{")

    encode_anchors(anchors, autoencoder, tmp_path, flip=False)
    assert contents(tmp_path) == before


def test_a_record_that_another_process_has_to_write_again_is_waited_for(
    autoencoder, anchors, tmp_path, monkeypatch
):
    whole = encode_anchors(anchors, autoencoder, tmp_path, flip=False)
    theirs = tmp_path / "latents" / "part-000000.json"
    content = theirs.read_text()
    theirs.write_text("{")
    monkeypatch.setattr("time.sleep", lambda seconds: theirs.write_text(content))
    found = encode_anchors(anchors, autoencoder, tmp_path, flip=False, rank=1, world_size=2)
    assert found.record == whole.record


def test_a_process_that_has_failed_is_not_waited_for_for_ever(
    autoencoder, anchors, tmp_path, monkeypatch
):
    monkeypatch.setattr("clsp.core.launch.WORK", timedelta(seconds=0.1))
    with pytest.raises(WorkError, match="latents that another process was to make"):
        encode_anchors(anchors, autoencoder, tmp_path, flip=False, world_size=2)
    assert len(list(tmp_path.glob("latents/part-*.json"))) == 3  # its own


def test_latents_of_other_images_flips_or_networks_make_way(
    autoencoder, anchors, tmp_path, tmp_path_factory
):
    other = save_autoencoder(tmp_path_factory.mktemp("other"), seed=1)
    runs = [
        (anchors, autoencoder, False),
        (anchors, autoencoder, True),
        (ImageSource(AnchorsConfig(limit=30, size=SIZE)), autoencoder, True),
        (anchors, load_autoencoder(read_autoencoder(str(other))), True),
    ]
    for images, network, flip in runs:
        encode_anchors(images, network, tmp_path / "one", flip=flip)
        fresh = tmp_path / f"{len(images)}-{network.digest}-{flip}"
        encode_anchors(images, network, fresh, flip=flip)
        assert contents(tmp_path / "one") == contents(fresh)


def test_images_that_are_cut_or_squashed_are_other_images(folder, autoencoder, tmp_path):
    for number in range(6):
        wide = Image.fromarray(photograph(number, 2 * SIZE)).resize((2 * SIZE, SIZE))
        put(tmp_path / "photos" / f"{number}.png", wide)

    for resize in ("crop", "squash"):
        config = AnchorsConfig(path=str(tmp_path / "photos"), size=SIZE, resize=resize)
        images = ImageSource(config)
        training = encode_anchors(images, autoencoder, tmp_path, flip=False)
        found = training.encoded.rows(range(6)).numpy()
        expected = expected_latents(folder, images)[:, :1]
        np.testing.assert_allclose(found, expected, atol=2e-3, rtol=2e-3)

    # Nor is a model of one taken for a model of the other
    cut = ImageSource(config.model_copy(update={"resize": "crop"}))
    train_diffusion(cut, CONFIG, tmp_path / "model", autoencoder=autoencoder)
    with pytest.raises(InputError, match="other settings"):
        train_diffusion(images, CONFIG, tmp_path / "model", autoencoder=autoencoder)


def test_latents_that_are_not_finite_are_named_by_anchor(
    autoencoder, anchors, tmp_path, monkeypatch
):
    original = Autoencoder.encode
    special = in_model_range(anchors[11].image[None])[0]

    def encode(self, images, *arguments):
        latents = original(self, images, *arguments)
        is_special = torch.isclose(images, special, atol=1e-5).flatten(1).all(dim=1)
        latents[is_special] = 1e6  # finite, but not in float16
        return latents

    monkeypatch.setattr(Autoencoder, "encode", encode)
    with pytest.raises(WorkError, match="not finite in float16 for the anchors train_00000011;"):
        encode_anchors(anchors, autoencoder, tmp_path, flip=False)


def test_a_scaling_that_does_not_fit_is_said_with_a_better_one(anchors, tmp_path, caplog):
    """Take what it says, and see that it fits."""
    network = load_autoencoder(
        read_autoencoder(str(save_autoencoder(tmp_path / "one", scaling_factor=90)))
    )
    encode_anchors(anchors, network, tmp_path / "out", flip=False)
    (line,) = caplog.messages
    assert "expected about 1; a better scaling_factor in its config.json is " in line

    caplog.clear()
    scaling = float(line.split()[-1])
    folder = save_autoencoder(tmp_path / "two", scaling_factor=scaling)
    better = load_autoencoder(read_autoencoder(str(folder)))
    training = encode_anchors(anchors, better, tmp_path / "better", flip=False)
    assert np.mean(np.square(training.record.deviations)) == pytest.approx(1, abs=0.01)
    assert caplog.messages == []


def test_a_model_of_latents_is_trained_and_resumed(folder, autoencoder, anchors, tmp_path):
    whole = train_diffusion(anchors, CONFIG, tmp_path / "whole", autoencoder=autoencoder)

    def stop(done, *progress):
        if done == 2:
            raise CrashError

    with pytest.raises(CrashError):  # behind the checkpoint of step 2
        train_diffusion(anchors, CONFIG, tmp_path / "parts", report=stop, autoencoder=autoencoder)
    parts = train_diffusion(anchors, CONFIG, tmp_path / "parts", autoencoder=autoencoder)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (parts / weights).read_bytes() == (whole / weights).read_bytes()

    # What is saved
    unet = DDPMPipeline.from_pretrained(whole).unet
    assert (unet.config["in_channels"], unet.config["sample_size"]) == (4, SIZE // 2)
    record = json.loads((whole / "latent.json").read_text())
    assert record["autoencoder"] == str(folder)
    assert (record["scaling"], record["factor"], record["size"]) == (SCALING, 2, SIZE)
    model = load_diffusion(str(whole), SIZE)
    assert (model.size, model.sample_shape) == (SIZE, (4, SIZE // 2, SIZE // 2))
    assert model.latent.ranges == tuple(map(tuple, record["ranges"]))

    # The grid is of pixels, 8 images in a row with a margin of 2
    grid = read_image(str(whole / "samples" / "step-00000004.png"))
    assert grid.shape == (3, 8 * (SIZE + 2) + 2, 8 * (SIZE + 2) + 2)


def test_training_shows_half_of_the_latents_mirrored(autoencoder, anchors, tmp_path):
    """By hand: what takes the place of a latent is the mirrored image's latent, half of the time."""
    encoded = encode_anchors(anchors, autoencoder, tmp_path, flip=True).encoded
    config = CONFIG.model_copy(update={"steps": 8})
    torch.manual_seed(0)
    mirrored = []
    with image_batches(anchors, config, 0, 0, 1, encoded=encoded) as batches:
        for batch in batches:
            assert batch.images_BCHW.shape == (8, 4, SIZE // 2, SIZE // 2)
            shown = flip_half(batch.images_BCHW, batch.mirrored_BCHW)
            is_plain = (shown == batch.images_BCHW).flatten(1).all(dim=1)
            is_mirrored = (shown == batch.mirrored_BCHW).flatten(1).all(dim=1)
            assert (is_plain ^ is_mirrored).all()
            mirrored += is_mirrored.tolist()

    assert len(mirrored) == 64
    assert 16 < sum(mirrored) < 48


def test_another_autoencoder_is_another_training(folder, autoencoder, anchors, tmp_path):
    train_diffusion(anchors, CONFIG, tmp_path / "model", autoencoder=autoencoder)
    moved = save_autoencoder(tmp_path / "moved")
    same = load_autoencoder(read_autoencoder(str(moved)))
    train_diffusion(anchors, CONFIG, tmp_path / "model", autoencoder=same)

    other = load_autoencoder(read_autoencoder(str(save_autoencoder(tmp_path / "other", seed=1))))
    for network in (other, None):
        with pytest.raises(InputError, match="holds a model trained with other settings"):
            train_diffusion(anchors, CONFIG, tmp_path / "model", autoencoder=network)
