"""Small nets for 32 x 32 px images, built from timm's own blocks and registered with timm: two sizes of seven kinds.

``*_large`` are teachers, ``*_small`` students. Their arguments can be overridden as for any timm model
(``args: {patch_size: 8}`` in a suite).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from timm.layers import Mlp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convnext import ConvNeXt
from timm.models.deit import VisionTransformerDistilled
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock
from timm.models.resnet import BasicBlock, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn


class ResNet32px(ResNet):
    """A residual net whose stem keeps the resolution: one 3 x 3 convolution with stride 1, no pooling (He et al. 2016, sec. 4.2)."""

    def __init__(self, stem_stride: int = 1, **kwargs: Any) -> None:
        super().__init__(block=BasicBlock, **kwargs)
        old: Any = self.get_submodule("conv1")
        stem = nn.Conv2d(old.in_channels, old.out_channels, 3, stride=stem_stride, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        self.conv1 = stem
        self.maxpool = nn.Identity()
        for info in self.feature_info:
            info["reduction"] = info["reduction"] * stem_stride // (4 if info["module"] != "act1" else 2)


class ConvNeXt32px(ConvNeXt):
    """A ConvNeXt whose only reduction before the first stage is its stem (timm halves once more after a 2 px stem)."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.stages[0].downsample = nn.Identity()
        for info in self.feature_info:
            info["reduction"] //= 2


class ResMLP32px(MlpMixer):
    """ResMLP (Touvron et al., arXiv:2105.03404): linear token mixing, affine instead of normalisation."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(block_layer=ResBlock, mlp_layer=Mlp, norm_layer=Affine, mlp_ratio=4, **kwargs)


@dataclass(frozen=True)
class _Kind:
    """A kind of net: its class, the arguments of either size and of both, and what timm is told of it."""

    net: type[nn.Module]
    large: dict[str, Any]
    small: dict[str, Any]
    both: dict[str, Any] = field(default_factory=dict)
    first_conv: str = "stem.proj"
    classifier: str = "head"
    fixed_input_size: bool = True


_MLP: dict[str, Any] = {
    "large": {"embed_dim": 192, "num_blocks": 8},
    "small": {"embed_dim": 96, "num_blocks": 6},
    "both": {"img_size": 32, "patch_size": 4},
}

# timm's default draws all linear layers of transformers with a standard deviation of 0.02, which starts narrow nets close to
# zero: hence "moco" and "jax". A ViT 64 wide, on the digits from scratch (25 images of each class, 40 epochs, one seed),
# reached 78.2 % with "moco", 67.8 % without.
_KINDS = {
    "resnet": _Kind(
        ResNet32px,
        large={"layers": (2, 2, 2, 2), "channels": (32, 64, 128, 256), "stem_width": 32},
        small={"layers": (1, 1, 1, 1), "channels": (16, 32, 64, 128), "stem_width": 16},
        first_conv="conv1", classifier="fc", fixed_input_size=False,
    ),
    "convnext": _Kind(
        ConvNeXt32px,
        large={"depths": (2, 2, 4, 2), "dims": (48, 96, 192, 384)},
        small={"depths": (1, 1, 2, 1), "dims": (24, 48, 96, 192)},
        both={"kernel_sizes": 3, "patch_size": 2},
        first_conv="stem.0", classifier="head.fc", fixed_input_size=False,
    ),
    "vit": _Kind(
        VisionTransformer,
        large={"embed_dim": 192, "depth": 8, "num_heads": 3},
        small={"embed_dim": 96, "depth": 6, "num_heads": 3},
        both={"img_size": 32, "patch_size": 4, "weight_init": "moco"},
        first_conv="patch_embed.proj",
    ),
    "deit": _Kind(
        VisionTransformerDistilled,
        large={"embed_dim": 192, "depth": 8, "num_heads": 3},
        small={"embed_dim": 96, "depth": 6, "num_heads": 3},
        both={"img_size": 32, "patch_size": 4, "weight_init": "moco"},
        first_conv="patch_embed.proj",
    ),
    "swin": _Kind(
        SwinTransformer,
        large={"embed_dim": 48, "depths": (2, 2, 4, 2), "num_heads": (2, 4, 8, 16)},
        small={"embed_dim": 24, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)},
        both={"img_size": 32, "patch_size": 2, "window_size": 4, "weight_init": "jax"},
        first_conv="patch_embed.proj", classifier="head.fc",
    ),
    "mixer": _Kind(MlpMixer, **_MLP),
    "resmlp": _Kind(ResMLP32px, **_MLP),
}  # fmt: skip

default_cfgs = generate_default_cfgs(
    {
        f"{name}_32px_{size}": {
            "url": "",
            "num_classes": 100,
            "input_size": (3, 32, 32),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.25, 0.25, 0.25),
            "first_conv": kind.first_conv,
            "classifier": kind.classifier,
            "fixed_input_size": kind.fixed_input_size,
        }
        for name, kind in _KINDS.items()
        for size in ("large", "small")
    }
)


def _register(name: str, net: type[nn.Module], arguments: dict[str, Any]) -> None:
    def build(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        return build_model_with_cfg(net, name, pretrained, **{**arguments, **kwargs})

    build.__name__ = name  # by which timm knows it
    register_model(build)


for _name, _kind in _KINDS.items():
    _register(f"{_name}_32px_large", _kind.net, {**_kind.both, **_kind.large})
    _register(f"{_name}_32px_small", _kind.net, {**_kind.both, **_kind.small})
