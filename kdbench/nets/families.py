"""Which family a net belongs to, where a suite does not say it: CNN, ViT or MLP.

Nets whose family is common knowledge stand in a table, by timm's and torchvision's modules. All others, hybrids and nets of your
own, go by what mixes their positions: a net that attends to positions in its last stage is a ViT; else one that convolves them is
a CNN; else it is an MLP.
"""

from __future__ import annotations

import re

from torch import nn

from kdbench.suite.net import Family

_MODULES: dict[Family, tuple[str, ...]] = {
    "cnn": (
        *("byobnet", "convmixer", "convnext", "cspnet", "cspnext", "densenet", "dla", "dpn", "edgenext", "efficientnet"),
        *("fasternet", "ghostnet", "googlenet", "hardcorenas", "hgnet", "hrnet", "inception", "inception_next"),
        *("inception_resnet_v2", "inception_v3", "inception_v4", "lcnetv2", "mambaout", "mnasnet", "mobilenet", "mobilenetv2"),
        *("mobilenetv3", "nasnet", "nfnet", "pnasnet", "rdnet", "regnet", "repghost", "repvit", "res2net", "resnest"),
        *("resnet", "resnetv2", "rexnet", "selecsls", "senet", "sknet", "squeezenet", "shufflenetv2", "starnet", "tresnet"),
        *("vgg", "vovnet", "xception", "xception_aligned"),
    ),
    "vit": (
        *("beit", "cait", "convit", "crossvit", "davit", "deit", "eva", "focalnet", "gcvit", "hiera", "hieradet_sam2", "levit"),
        *("mvitv2", "naflexvit", "nest", "pit", "pvt_v2", "swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr"),
        *("tiny_vit", "tnt", "twins", "vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos"),
        *("vision_transformer_sam", "volo", "xcit"),
    ),
    "mlp": ("mlp_mixer",),
}  # fmt: skip
_FAMILY_OF_MODULE = {module: family for family, modules in _MODULES.items() for module in modules}

#: Names of classes that attend to positions.
_ATTENDS = re.compile(r"att(n|ention)|mhsa|shsa|shma|mla\b|lambda", re.IGNORECASE)


def family_of(net: nn.Module) -> Family:
    """The family of a net: as its class or a base class is known, else by what mixes its positions."""
    if any(type(module).__module__ == "timm.models.mobilevit" for module in net.modules()):  # of the class of ResNets
        return "vit"
    for cls in type(net).__mro__:
        package, _, module = cls.__module__.rpartition(".")
        if package in ("timm.models", "torchvision.models") and module in _FAMILY_OF_MODULE:
            return _FAMILY_OF_MODULE[module]
    if any(_ATTENDS.search(type(module).__name__) for module in _last_stage(net).modules()):
        return "vit"
    return "cnn" if any(_mixes(module) for module in net.modules()) else "mlp"


def _last_stage(net: nn.Module) -> nn.Module:
    """The last stage of a timm net; else the whole net."""
    info = getattr(net, "feature_info", None)
    try:
        return net.get_submodule(info[-1]["module"])  # type: ignore[index]
    except (AttributeError, KeyError, IndexError, TypeError):
        return net


def _mixes(module: nn.Module) -> bool:
    """Whether a module convolves positions that overlap, as patch embeddings do not."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d)) and any(
        size > step for size, step in zip(module.kernel_size, module.stride, strict=True)
    )
