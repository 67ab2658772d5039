"""The 32 px nets of the classic CIFAR-100 tables, with the keys of RepDistiller's and mdistiller's checkpoints.

In reading order: ``net`` (what they share: steps, maps, timm's interface), ``large`` (ResNet, ResNet50, WRN, VGG), ``mobile``
(MobileNetV2, ShuffleNet V1 and V2), ``models`` (the 22 nets, registered with timm).
"""
