import subprocess
import sys

import pytest
import safetensors.torch
import timm
import torch
from clsp.core import InputError
from clsp.train import PretrainConfig, build_backbone, build_method, embed, load_backbone
from clsp.train.backbone import check_backbone, save_backbone

SMALL = PretrainConfig(
    backbone_kwargs={"channels": [8, 16, 16, 32]}, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)
)
OTHERS = [
    PretrainConfig(
        stem="default", backbone="convnext_atto", backbone_kwargs={"depths": [1, 1, 1, 1]}
    ),
    PretrainConfig(
        stem="default",
        backbone="vit_tiny_patch16_224",
        backbone_kwargs={"img_size": 32, "patch_size": 8, "depth": 1},
    ),
    PretrainConfig(stem="default", backbone="mobilenetv3_small_050"),  # a layer more in its head
]
NAMES = ["resnet18-cifar", "convnext", "vit", "mobilenet"]


def test_cifar_stem_keeps_the_resolution():
    model = build_backbone(SMALL)
    assert (
        model.conv1.kernel_size == (3, 3)
        and model.conv1.stride == (1, 1)
        and model.conv1.padding == (1, 1)
    )
    assert isinstance(model.maxpool, torch.nn.Identity)
    assert model.forward_features(torch.zeros(1, 3, 32, 32)).shape == (1, 32, 4, 4)


@pytest.mark.parametrize("config", [SMALL, *OTHERS], ids=NAMES)
def test_an_export_loads_with_timm_and_embeds_equally(config, tmp_path):
    torch.manual_seed(0)
    model = build_backbone(config).eval()
    save_backbone(model, config, 32, tmp_path / "backbone")
    loaded, facts = load_backbone(tmp_path / "backbone")
    by_timm = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(embed(loaded, images), embed(model, images))
        assert torch.equal(by_timm(images), model(images))
    assert (tuple(facts["mean"]), tuple(facts["std"]), facts["input_size"]) == (
        config.mean,
        config.std,
        [3, 32, 32],
    )
    assert sorted(path.name for path in (tmp_path / "backbone").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize("config", [SMALL, *OTHERS], ids=NAMES)
def test_the_projector_fits_what_the_backbone_gives(config):
    heads = {"projector_hidden": 16, "projector_out": 8}
    method = build_method(config.model_copy(update=heads))
    images = [torch.randn(2, 3, 32, 32) for _ in range(2)]
    assert torch.isfinite(method(images, None, None, torch.tensor([0, 1]))["contrastive"])


@pytest.mark.parametrize(
    ("size", "changes", "message"),
    [
        (64, {}, r"does not take images of 64 pixels \(.+\); add --set .+\.img_size=64$"),
        (4, {}, r"does not take images of 4 pixels \(.+\); it was made for 224: .+ anchors.size"),
        (32, {"global_pool": ""}, r"gives \(2, 17, 192\) for two images, expected \(2, 192\)"),
    ],
)
def test_a_backbone_that_cannot_be_trained_is_refused_before(size, changes, message):
    vit = OTHERS[1].model_copy(update={"backbone_kwargs": {**OTHERS[1].backbone_kwargs, **changes}})
    check_backbone(vit, 32) if not changes else None
    with pytest.raises(InputError, match=message) as found:
        check_backbone(vit, size)
    assert "\n" not in str(found.value)


@pytest.mark.slow
def test_plain_timm_fails_on_the_cifar_stem(tmp_path):
    save_backbone(build_backbone(SMALL), SMALL, 32, tmp_path / "backbone")
    code = f"import timm; timm.create_model('local-dir:{tmp_path / 'backbone'}', pretrained=True)"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert found.returncode != 0 and "clsp_resnet18_cifar" in found.stderr


def test_weights_that_share_memory_are_saved(tmp_path):
    model = build_backbone(SMALL).eval()
    model.layer1[0].conv2 = model.layer1[0].conv1
    save_backbone(model, SMALL, 32, tmp_path)
    written = safetensors.torch.load_file(tmp_path / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(written[name], value)


def test_loading_is_strict(tmp_path):
    save_backbone(build_backbone(SMALL), SMALL, 32, tmp_path)
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    weights.pop("layer1.0.conv1.weight")
    safetensors.torch.save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="no loadable timm backbone"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PretrainConfig(backbone="resnet19", stem="default"), "timm has no model 'resnet19'"),
        (PretrainConfig(backbone="convnext_atto"), "set pretrain.stem=default"),
        (PretrainConfig(backbone_kwargs={"chanels": [8]}), "backbone_kwargs do not fit"),
        (PretrainConfig(backbone_kwargs={"layers": 3}), "backbone_kwargs do not fit"),
    ],
)
def test_bad_names_are_refused(config, message):
    with pytest.raises(InputError, match=message):
        build_backbone(config)


@pytest.mark.slow
def test_importing_the_package_makes_the_stem_known_to_timm():
    code = "import clsp.train, timm; raise SystemExit(not timm.is_model('clsp_resnet18_cifar'))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
