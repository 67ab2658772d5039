"""Nets that every suite may use by a short name: what a suite would write of them, as ``NetSpec`` reads it.

``nets/small.py`` registers the 32 px nets with timm, ``nets/swin_small.py`` Swin-N and Swin-P. A suite starts from a net of the
zoo with ``zoo: NAME`` and says what is different, above all where its teachers' weights come from.
"""

from __future__ import annotations

from typing import Any


def _small(name: str, family: str, display: str, memory_format: str = "contiguous") -> dict[str, dict[str, Any]]:
    shared = {"family": family, "memory_format": memory_format}
    return {
        f"{name}_32px_{size}": {"timm": f"{name}_32px_{size}", "display": f"{display}-{letter}", **shared}
        for size, letter in (("large", "L"), ("small", "S"))
    }


def _net(timm: str, family: str, display: str, *taps: int | str) -> dict[str, Any]:
    return {"timm": timm, "family": family, "display": display, "taps": taps}


#: Nets for 32 x 32 px, teachers and students, built here.
SMALL_NETS: dict[str, dict[str, Any]] = {
    **_small("resnet", "cnn", "ResNet32px", "channels_last"),
    **_small("convnext", "cnn", "ConvNeXt32px"),
    **_small("vit", "vit", "ViT32px"),
    **_small("swin", "vit", "Swin32px"),
    **_small("mixer", "mlp", "Mixer32px"),
    **_small("resmlp", "mlp", "ResMLP32px"),
}

# Taps are positions in timm's list of features. They are OFA-KD's (``custom_forward/*.py``, ``stage_info``): what leaves each
# stage of a hierarchical net; 2, 4, 10 and 12 of the 12 blocks of a plain one. timm's tag names the weights with which these
# nets are teachers; the comment beside it names the file that OFA-KD and PAT load under timm 0.6.5. Normalisation and
# evaluation crop are those of the tag.
#: Nets of the published tables, 224 x 224 px.
LARGE_NETS: dict[str, dict[str, Any]] = {
    "resnet18": _net("resnet18.tv_in1k", "cnn", "ResNet18", 1, 2, 3, 4),  # torchvision's; timm's default is a1_in1k
    "resnet34": _net("resnet34.bt_in1k", "cnn", "ResNet34", 1, 2, 3, 4),  # resnet34-43635321
    "resnet50": _net("resnet50.a1_in1k", "cnn", "ResNet50", 1, 2, 3, 4),  # resnet50_a1_0-14fe96d1
    "resnet101": _net("resnet101.a1h_in1k", "cnn", "ResNet101", 1, 2, 3, 4),  # resnet101_a1h-36d3f2aa
    "resnet152": _net("resnet152.a1h_in1k", "cnn", "ResNet152", 1, 2, 3, 4),  # resnet152_a1h-dc400468
    # OFA-KD taps the flat blocks 2, 5 and 12, which end timm's stages 1, 2 and 4, then the last convolution (1,280 wide).
    "mobilenetv2": _net(
        "mobilenetv2_100.ra_in1k", "cnn", "MobileNetV2", 1, 2, 3, "final"
    ),  # mobilenetv2_100_ra-b33bc2c4
    "convnext_tiny": _net("convnext_tiny.fb_in1k", "cnn", "ConvNeXt-T", 0, 1, 2, 3),  # convnext_tiny_1k_224_ema
    "convnext_base": _net("convnext_base.fb_in1k", "cnn", "ConvNeXt-B", 0, 1, 2, 3),  # convnext_base_1k_224_ema
    "deit_tiny": _net("deit_tiny_patch16_224.fb_in1k", "vit", "DeiT-T", 1, 3, 9, 11),  # deit_tiny_patch16_224-a1311bcf
    "vit_small": _net("vit_small_patch16_224.augreg_in21k_ft_in1k", "vit", "ViT-S", 1, 3, 9, 11),  # S_16-i21k-300ep...
    "vit_base": _net("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit", "ViT-B", 1, 3, 9, 11),  # B_16-i21k-300ep...
    "swin_tiny": _net("swin_tiny_patch4_window7_224.ms_in1k", "vit", "Swin-T", 0, 1, 2, 3),  # the same name
    "swin_base": _net("swin_base_patch4_window7_224.ms_in22k_ft_in1k", "vit", "Swin-B", 0, 1, 2, 3),  # ..._22kto1k
    "swin_nano": _net("swin_nano_patch4_window7_224", "vit", "Swin-N", 0, 1, 2, 3),
    "swin_pico": _net("swin_pico_patch4_window7_224", "vit", "Swin-P", 0, 1, 2, 3),
    "mixer_b16": _net(
        "mixer_b16_224.goog_in21k_ft_in1k", "mlp", "Mixer-B/16", 1, 3, 9, 11
    ),  # jx_mixer_b16_224-76587d61
    "resmlp_s12": _net("resmlp_12_224.fb_in1k", "mlp", "ResMLP-S12", 1, 3, 9, 11),  # resmlp_12_no_dist
    "beitv2_base": _net("beitv2_base_patch16_224.in1k_ft_in22k_in1k", "vit", "BEiTv2-B", 1, 3, 9, 11),
    "beitv2_large": _net("beitv2_large_patch16_224.in1k_ft_in22k_in1k", "vit", "BEiTv2-L", 1, 3, 21, 23),
}

ZOO: dict[str, dict[str, Any]] = {**SMALL_NETS, **LARGE_NETS}
