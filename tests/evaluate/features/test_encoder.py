import json

import numpy as np
import pytest
import timm
import torch
from clsp.core import InputError
from clsp.evaluate import load_encoder
from clsp.evaluate.features.encoder import Encoder


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)


SWIN = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 2)}
"""Few layers; the masks of its windows become constants of five dimensions when it is traced."""
MODELS = {
    "resnet18": {},
    "vit_tiny_patch16_224": {"img_size": 64},
    "convnext_atto": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, **SWIN},
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_those_of_plain_timm(tmp_path, images, name):
    """Models with their own normalisation, some with batch norms to fold and some that cannot be traced."""
    torch.manual_seed(0)
    options = MODELS[name]
    model = timm.create_model(name, num_classes=0, **options)
    model(torch.randn(8, 3, 64, 64))  # moves the running statistics
    data = {"input_size": (3, 64, 64), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    timm.models.save_for_hf(
        model, str(tmp_path), model_args=options, data_config=data, safe_serialization=True
    )
    normalised = (
        torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        - torch.tensor(data["mean"])[:, None, None]
    ) / (torch.tensor(data["std"])[:, None, None])
    with torch.no_grad():
        expected, mirrored = model.eval()(normalised), model(normalised.flip(-1))
    encoder = load_encoder(tmp_path, "no")
    torch.testing.assert_close(encoder(images), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(encoder(images, flips=True), mirrored, atol=1e-4, rtol=1e-3)
    close = torch.nn.functional.cosine_similarity(load_encoder(tmp_path, "bf16")(images), expected)
    assert close.min() > 0.99


def test_other_sizes_are_scaled_as_pillow_scales_them(images):
    from PIL import Image

    encoder = Encoder(
        torch.nn.Identity(), {"input_size": (3, 32, 32), "mean": (0, 0, 0), "std": (1, 1, 1)}, "no"
    )
    found = encoder(images).view(5, 3, 32, 32).permute(0, 2, 3, 1).numpy() * 255
    expected = np.asarray(Image.fromarray(images[0]).resize((32, 32), Image.Resampling.BICUBIC))
    assert np.abs(found[0] - expected).max() <= 1.5


@pytest.mark.parametrize("name", ["./nowhere", "no_such_model", "resnet18.a1_in1k", "foo:bar"])
def test_an_encoder_that_cannot_be_had_is_refused(name):
    with pytest.raises(InputError, match="no folder of a model|cannot load its pretrained weights"):
        load_encoder(name)


def test_a_checkpoint_that_is_no_backbone_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "resnet18"}')
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(InputError, match="no loadable timm backbone"):
        load_encoder(tmp_path)
    config = {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3}
    for cfg in (config, {"input_size": [3, 32, 32]}):
        (tmp_path / "config.json").write_text(
            json.dumps({"architecture": "resnet18", "pretrained_cfg": cfg})
        )
        with pytest.raises(InputError, match="no loadable timm backbone"):
            load_encoder(tmp_path)
