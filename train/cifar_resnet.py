"""ResNets with the stem for small images, registered with timm under names of their own.

timm has no argument for this stem, and its own `resnet18` would load such weights into another network without a word;
`clsp_resnet18_cifar` is unknown to plain timm and so fails there.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

STEM: dict[str, Any] = {
    "url": "",
    "num_classes": 1000,
    "input_size": (3, 32, 32),
    "pool_size": (4, 4),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.5, 0.5, 0.5),
    "std": (0.5, 0.5, 0.5),
    "first_conv": "conv1",
    "classifier": "fc",
}

default_cfgs = generate_default_cfgs(
    {f"clsp_{name}_cifar": dict(STEM) for name in ("resnet18", "resnet34", "resnet50", "resnet101")}
)


class CifarResNet(ResNet):
    """Builds a ResNet whose first convolution is 3x3, stride 1, padding 1, without max-pool."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        width = self.conv1.out_channels
        assert isinstance(width, int)
        self.conv1 = nn.Conv2d(kwargs.get("in_chans", 3), width, 3, stride=1, padding=1, bias=False)
        nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.maxpool = nn.Identity()


def _build(variant: str, pretrained: bool, kwargs: dict[str, Any], **shape: Any) -> nn.Module:
    return build_model_with_cfg(CifarResNet, variant, pretrained, **{**shape, **kwargs})


@register_model
def clsp_resnet18_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a ResNet-18 with the CIFAR stem."""
    return _build("clsp_resnet18_cifar", pretrained, kwargs, block=BasicBlock, layers=(2, 2, 2, 2))


@register_model
def clsp_resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a ResNet-34 with the CIFAR stem."""
    return _build("clsp_resnet34_cifar", pretrained, kwargs, block=BasicBlock, layers=(3, 4, 6, 3))


@register_model
def clsp_resnet50_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a ResNet-50 with the CIFAR stem."""
    return _build("clsp_resnet50_cifar", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 6, 3))


@register_model
def clsp_resnet101_cifar(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a ResNet-101 with the CIFAR stem."""
    return _build(
        "clsp_resnet101_cifar", pretrained, kwargs, block=Bottleneck, layers=(3, 4, 23, 3)
    )
