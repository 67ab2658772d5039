"""How papers call nets and methods, and what is known of how they trained."""

from __future__ import annotations

#: Net -> how papers, timm and suites call it. Compared without case and punctuation, and without what is in brackets.
NET_ALIASES = {
    "resnet18": ("ResNet18", "ResNet-18", "R18"),
    "resnet34": ("ResNet34", "ResNet-34", "R34"),
    "resnet50": ("ResNet50", "ResNet-50", "R50"),
    "mobilenetv2_100": ("MobileNetV2", "MobileNet-V2", "MBV2"),
    "convnext_tiny": ("ConvNeXt-T", "ConvNeXt-Tiny"),
    "swin_tiny_patch4_window7_224": ("Swin-T", "Swin-Tiny"),
    "swin_nano": ("Swin-N", "swin_nano_patch4_window7_224"),
    "swin_pico": ("Swin-P", "swin_pico_patch4_window7_224"),
    "vit_small_patch16_224": ("ViT-S", "ViT-S/16", "ViT-Small", "ViT-Small/16"),
    "vit_base_patch16_224": ("ViT-B", "ViT-B/16", "ViT-Base", "ViT-Base/16"),
    "vit_large_patch16_224": ("ViT-L", "ViT-L/16", "ViT-Large", "ViT-Large/16"),
    "deit_tiny_patch16_224": ("DeiT-T", "DeiT-Ti", "DeiT-Tiny"),
    "deit_small_patch16_224": ("DeiT-S", "DeiT-Small"),
    "deit_base_patch16_224": ("DeiT-B", "DeiT-Base"),
    "mixer_b16_224": ("Mixer-B/16", "Mixer-B", "Mixer-Base/16"),
    "resmlp_12_224": ("ResMLP-S12", "ResMLP-12"),
}

METHOD_ALIASES = {
    "scratch": ("from scratch", "student alone (no KD)"),
    "mlld": ("MLKD",),
    "lskd": ("KD+LSKD",),
    # The tables at 224 px train their FitNet with KD (Hao840/OFAKD, issue 10).
    "fitnet-kd": ("FitNet", "FitNets"),
    "ofa": ("OFA", "OFA-KD"),
    "fofa": ("FOFA", "PAT"),
    "tas": ("TAS", "FBT"),
    "teacher": ("teacher", "teacher alone (no KD)", "released teacher checkpoint (no distillation)"),
}

#: (arXiv id, data set) -> epochs by the family of the student, where they could be read: OFA-KD's configs/*.yaml, which the code
#: of PAT (there with averaged weights) and of RSD uses too. Others are not known and nothing is said of them.
PUBLISHED_EPOCHS = {
    (paper, dataset): {"cnn": epochs, "vit": 300, "mlp": 300}
    for paper in ("2310.19444", "2501.08885", "2507.21844")
    for dataset, epochs in (("cifar100", 300), ("imagenet1k", 100))
}
AVERAGED_WEIGHTS = ("2501.08885",)
