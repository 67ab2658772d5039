"""The 22 classic nets, registered with timm as ``NAME_32px``: timm has other nets called ``vgg13`` or ``resnet50``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from kdbench.nets.classic.large import VGG, WRN, ResNet, ResNet50
from kdbench.nets.classic.mobile import MobileNetV2, ShuffleV1, ShuffleV2
from kdbench.nets.classic.net import ClassicNet

#: Name in RepDistiller's and mdistiller's dictionaries of models -> class and arguments.
CLASSIC_NETS: dict[str, tuple[type[ClassicNet], dict[str, Any]]] = {
    **{
        f"resnet{depth}": (ResNet, {"widths": (16, 16, 32, 64), "depths": ((depth - 2) // 6,) * 3})
        for depth in (8, 14, 20, 32, 44, 56, 110)
    },
    **{
        f"resnet{depth}x4": (ResNet, {"widths": (32, 64, 128, 256), "depths": ((depth - 2) // 6,) * 3})
        for depth in (8, 32)
    },
    "ResNet50": (ResNet50, {"widths": (64, 256, 512, 1024, 2048), "depths": (3, 4, 6, 3)}),
    **{f"wrn_{depth}_{width}": (WRN, {"depth": depth, "width": width}) for depth in (16, 40) for width in (1, 2)},
    "vgg8": (VGG, {"depths": (1, 1, 1, 1, 1)}),
    "vgg11": (VGG, {"depths": (1, 1, 2, 2, 2)}),
    "vgg13": (VGG, {"depths": (2, 2, 2, 2, 2)}),
    "vgg16": (VGG, {"depths": (2, 2, 3, 3, 3)}),
    "vgg19": (VGG, {"depths": (2, 2, 4, 4, 4)}),
    "MobileNetV2": (MobileNetV2, {}),
    "ShuffleV1": (ShuffleV1, {}),
    "ShuffleV2": (ShuffleV2, {}),
}

default_cfgs = generate_default_cfgs(
    {
        f"{name}_32px": {
            "url": "",
            "num_classes": 100,
            "input_size": (3, 32, 32),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5071, 0.4867, 0.4408),
            "std": (0.2675, 0.2565, 0.2761),
            "first_conv": None,
            "classifier": cls.classifier_name,
        }
        for name, (cls, _) in CLASSIC_NETS.items()
    }
)


def _entrypoint(name: str) -> Callable[..., nn.Module]:
    cls, arguments = CLASSIC_NETS[name]

    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(
            cls, build.__name__, pretrained, kwargs_filter=("in_chans",), **{**arguments, **kwargs}
        )

    build.__name__ = f"{name}_32px"
    return build


for _name in CLASSIC_NETS:
    register_model(_entrypoint(_name))
