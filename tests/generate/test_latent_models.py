"""What is refused of latent models, each in one line, and where their autoencoder is looked for."""

import json
import shutil
from pathlib import Path

import pytest
from clsp.core import InputError
from clsp.generate import LatentRecord, image_size, load_autoencoder, load_diffusion
from clsp.generate import read_autoencoder as read
from clsp.generate.pretrained import looks_local
from huggingface_hub.constants import HF_HUB_CACHE
from latent_models import SCALING, SIZE, save_autoencoder, save_ldm, save_unet


def record(unet: Path, autoencoder: Path) -> None:
    """Write beside a U-Net what clsp diffusion train writes."""
    loaded = load_autoencoder(read(str(autoencoder)))
    found = LatentRecord(
        autoencoder=str(autoencoder),
        digest=loaded.digest,
        scaling=SCALING,
        channels=4,
        factor=2,
        size=SIZE,
        ranges=((-1, 1),) * 4,
        deviations=(1,) * 4,
    )
    (unet / "latent.json").write_text(found.model_dump_json())


@pytest.fixture
def trained(tmp_path) -> Path:
    """A model that says where its autoencoder is."""
    unet = save_unet(tmp_path / "model")
    record(unet, save_autoencoder(tmp_path / "ae"))
    return unet


def test_an_autoencoder_is_the_given_one_the_one_beside_or_the_recorded_one(trained, tmp_path):
    digest = load_diffusion(str(trained), SIZE).digest
    assert image_size(str(trained)) == SIZE

    # Moved: given, or put beside
    moved = (tmp_path / "ae").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"not where it was .*diffusion.latent=DIR"):
        load_diffusion(str(trained), SIZE)
    assert load_diffusion(str(trained), SIZE, latent=str(moved)).digest == digest
    shutil.copytree(moved, trained / "vae")
    assert load_diffusion(str(trained), SIZE).digest == digest


def test_an_ldm_pipeline_is_a_latent_model(tmp_path):
    folder = save_ldm(tmp_path / "ldm")
    model = load_diffusion(str(folder), SIZE)
    assert model.latent is not None
    assert (model.latent.autoencoder.config.kind, model.latent.ranges) == ("VQModel", None)
    assert image_size(str(folder)) == SIZE

    # Its U-Net has 3 channels: it must not be taken for one of images of 8 pixels
    with pytest.raises(InputError, match=r"latents of 8.*images 2 times as large.*anchors have 8"):
        load_diffusion(str(folder), SIZE // 2)

    # Without its autoencoder
    shutil.rmtree(folder / "vqvae")
    with pytest.raises(InputError, match=r"makes latents, and its autoencoder is not where it was"):
        load_diffusion(str(folder), SIZE)
    index = folder / "model_index.json"
    content = json.loads(index.read_text())
    content.pop("vqvae")
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"no autoencoder lies beside its U-Net; name its auto"):
        load_diffusion(str(folder), SIZE)


def test_an_autoencoder_beside_a_plain_unet_is_taken(tmp_path):
    unet = save_unet(tmp_path / "model")
    shutil.copytree(save_autoencoder(tmp_path / "ae"), unet / "vae")
    assert load_diffusion(str(unet), SIZE).latent is not None
    (unet / "model_index.json").unlink()
    assert load_diffusion(str(unet), SIZE).latent is not None


def test_models_that_do_not_fit_are_refused(trained, tmp_path):
    alone = save_unet(tmp_path / "alone")
    with pytest.raises(InputError, match=r"\(4, 4\) channels.*diffusion.latent=DIR or hub id"):
        load_diffusion(str(alone), SIZE // 2)

    three = save_autoencoder(tmp_path / "three", latent_channels=3)
    with pytest.raises(InputError, match=r"latents of 3 channels, the diffusion model .* has 4 in"):
        load_diffusion(str(alone), SIZE, latent=str(three))

    other = save_autoencoder(tmp_path / "other", seed=1)
    with pytest.raises(InputError, match=r"has the digest .* was trained with .*ae of "):
        load_diffusion(str(trained), SIZE, latent=str(other))

    with pytest.raises(InputError, match=r"17 pixels cannot be divided by 2"):
        load_diffusion(str(trained), SIZE + 1)
    with pytest.raises(InputError, match=r"latents of 8, .* the anchors have 32 pixels"):
        load_diffusion(str(trained), 2 * SIZE)

    (trained / "latent.json").write_text("{}")
    with pytest.raises(InputError, match=r"latent.json does not say what the model's latents are"):
        load_diffusion(str(trained), SIZE)


def test_a_unet_that_names_no_size_is_refused(tmp_path):
    unet = save_unet(tmp_path / "model")
    shutil.copytree(save_autoencoder(tmp_path / "ae"), unet / "vae")
    config = unet / "unet" / "config.json"
    content = json.loads(config.read_text())
    del content["sample_size"]
    config.write_text(json.dumps(content))
    for size in (SIZE, None):
        with pytest.raises(InputError, match="for which size it was trained; write it as sample_s"):
            load_diffusion(str(unet), size)
    with pytest.raises(InputError, match="for which size it was trained"):
        image_size(str(unet))


def test_a_pixel_model_with_an_autoencoder_is_refused(model_folder, tmp_path):
    four = save_autoencoder(tmp_path / "four")
    with pytest.raises(
        InputError, match=r"latents of 4 channels.*leave it empty for a model of pi"
    ):
        load_diffusion(str(model_folder), 8, latent=str(four))


def test_a_model_conditioned_on_text_is_refused(tmp_path):
    """Stable Diffusion's folder has a `vae`, and a U-Net of another class."""
    unet = save_unet(tmp_path / "sd")
    shutil.copytree(save_autoencoder(tmp_path / "ae"), unet / "vae")
    config = unet / "unet" / "config.json"
    content = json.loads(config.read_text()) | {"_class_name": "UNet2DConditionModel"}
    config.write_text(json.dumps(content))
    with pytest.raises(InputError, match="class does not fit; expected a UNet2DModel"):
        load_diffusion(str(unet), SIZE)


def test_a_model_of_three_channels_on_the_hub_says_that_it_makes_latents(tmp_path):
    """Its folder in the cache has latent.json, which is only asked for because of the note in model_index.json."""
    unet = save_unet(tmp_path / "three", channels=3)
    save_autoencoder(tmp_path / "ae", latent_channels=3)
    record(unet, tmp_path / "ae")
    index = unet / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "_latent": "latent.json"}))

    cache = Path(HF_HUB_CACHE) / "models--someone--latents"
    shutil.copytree(unet, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    model = load_diffusion("someone/latents", SIZE)
    assert model.latent is not None
    assert model.size == SIZE


def test_what_lies_in_a_folder_that_is_here_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    assert looks_local("runs/none") and looks_local("runs/day/diffusion")
    assert not looks_local("stabilityai/sd-vae-ft-mse") and not looks_local("runs2")
