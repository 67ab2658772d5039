"""Swin-N and Swin-P, the small Swin students of the OFA-KD tables, registered with timm, which does not have them.

Hao et al., arXiv:2310.19444; sizes from ``custom_model/swin_transformer.py`` of github.com/Hao840/OFAKD.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer, checkpoint_filter_fn
from torch import nn

# The official code gives them no configuration of their own; timm 0.6.5, which it runs on, then crops 0.9, bicubic.
default_cfgs = generate_default_cfgs(
    {
        f"swin_{size}_patch4_window7_224": {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.9,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "patch_embed.proj",
            "classifier": "head.fc",
            "fixed_input_size": True,
        }
        for size in ("nano", "pico")
    }
)


def _swin(variant: str, width: int, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    arguments = {"patch_size": 4, "window_size": 7, "depths": (2, 2, 2, 2), "num_heads": (2, 4, 8, 16)}
    return build_model_with_cfg(
        SwinTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{**arguments, "embed_dim": width, **kwargs},
    )


@register_model
def swin_nano_patch4_window7_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-N: two blocks in each stage, 64 to 512 channels; 9.60 M parameters for 1,000 classes."""
    return _swin("swin_nano_patch4_window7_224", 64, pretrained, kwargs)


@register_model
def swin_pico_patch4_window7_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Swin-P: two blocks in each stage, 48 to 384 channels; 5.16 M parameters for 100 classes."""
    return _swin("swin_pico_patch4_window7_224", 48, pretrained, kwargs)
