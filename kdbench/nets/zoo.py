"""Nets that every suite may use by a short name. Works without torch; ``small.py`` registers the 32 px ones with timm."""

from __future__ import annotations

from kdbench.nets.spec import NetSpec


def _small(name: str, family: str, display: str) -> dict[str, NetSpec]:
    return {
        f"{name}_32px_{size}": NetSpec(timm=f"{name}_32px_{size}", family=family, display=f"{display}-{letter}")
        for size, letter in (("large", "L"), ("small", "S"))
    }


ZOO: dict[str, NetSpec] = {
    **_small("resnet", "cnn", "ResNet32px"),
    **_small("convnext", "cnn", "ConvNeXt32px"),
    **_small("vit", "vit", "ViT32px"),
    **_small("swin", "vit", "Swin32px"),
    **_small("mixer", "mlp", "Mixer32px"),
    **_small("resmlp", "mlp", "ResMLP32px"),
}
