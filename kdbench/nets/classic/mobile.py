"""MobileNetV2 and ShuffleNet V1 and V2 for 32 px."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.nets.classic.net import ClassicNet, Step, conv, initialise

#: Expansion, channels at full width, blocks and stride of MobileNetV2's stages. The second has stride 1, for 32 px.
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 1),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
#: How many stages there are before each map.
_MAPS_AFTER = (0, 2, 3, 5, 7)


class InvertedResidual(nn.Module):
    """1 x 1 convolution to ``expansion`` times the width, depthwise 3 x 3, 1 x 1 without activation."""

    def __init__(self, channels_in: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        self.conv = nn.Sequential(
            *_conv_bn_relu(channels_in, wide, 1),
            *_conv_bn_relu(wide, wide, 3, stride, groups=wide),
            *_conv_bn_relu(wide, channels, 1)[:2],
        )
        self.adds = stride == 1 and channels_in == channels

    def forward(self, value: Tensor) -> Tensor:
        return value + self.conv(value) if self.adds else self.conv(value)


class MobileNetV2(ClassicNet):
    """MobileNetV2 of half the width (Sandler et al., arXiv:1801.04381), with ReLU for ReLU6, a stem of stride 2, and an expansion
    in its first block too. Its maps are the linear ends of stages: nothing is there before an activation."""

    classifier_name = "classifier.0"

    def __init__(self, num_classes: int = 100) -> None:
        super().__init__(num_classes, ((16, 2), (12, 2), (16, 4), (48, 8), (160, 16)))
        self.conv1 = nn.Sequential(*_conv_bn_relu(3, 16, 3, 2))
        stages, before = [], 16
        for expansion, channels, depth, stride in _STAGES:
            blocks = [InvertedResidual(before, channels // 2, expansion, stride)]
            blocks += [InvertedResidual(channels // 2, channels // 2, expansion, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            before = channels // 2
        self.blocks = nn.ModuleList(stages)
        self.conv2 = nn.Sequential(*_conv_bn_relu(before, 1280, 1))
        self.classifier = nn.Sequential(nn.Linear(1280, num_classes))
        initialise(self, linear_std=0.01)

    def steps(self) -> list[Step]:
        return [self.conv1, *(partial(self._run, *bounds) for bounds in pairwise(_MAPS_AFTER)), self.conv2]

    def _run(self, start: int, end: int, value: Tensor) -> Tensor:
        for stage in self.blocks[start:end]:
            value = stage(value)
        return value

    def activations(self) -> list[nn.Module]:
        return []


class ShuffleUnit(nn.Module):
    """1 x 1 convolution in groups, channel shuffle, depthwise 3 x 3, 1 x 1 in groups. With stride 2 the shortcut is an average
    pooling, and concatenated."""

    def __init__(self, channels_in: int, channels: int, stride: int, first_groups: int, groups: int) -> None:
        super().__init__()
        width = channels // 4
        self.groups, self.stride = first_groups, stride
        self.conv1 = conv(channels_in, width, 1, groups=first_groups)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride, groups=width)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, channels, 1, groups=groups)
        self.bn3 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU(inplace=True)

    def forward(self, value: Tensor) -> Tensor:
        inner = shuffle(F.relu(self.bn1(self.conv1(value)), inplace=True), self.groups)
        inner = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(inner)), inplace=True)))
        if self.stride == 1:
            return self.act(inner + value)
        return self.act(torch.cat([inner, F.avg_pool2d(value, 3, stride=2, padding=1)], dim=1))


class _ShuffleNet(ClassicNet):
    """A 1 x 1 stem of 24 channels and three stages."""

    classifier_name = "linear"

    def __init__(self, num_classes: int, widths: tuple[int, int, int]) -> None:
        super().__init__(num_classes, list(zip((24, *widths), (1, 2, 4, 8), strict=True)))
        self.conv1 = conv(3, 24, 1)
        self.bn1 = nn.BatchNorm2d(24)
        self.act = nn.ReLU(inplace=True)

    def steps(self) -> list[Step]:
        return [lambda images: self.act(self.bn1(self.conv1(images))), *self._stages()]

    def activations(self) -> list[nn.Module]:
        return [self.act, *(stage[-1].act for stage in self._stages())]

    def _stages(self) -> list[Any]:
        return [self.get_submodule(f"layer{number}") for number in (1, 2, 3)]


class ShuffleV1(_ShuffleNet):
    """ShuffleNet with three groups (Zhang et al., arXiv:1707.01083), with a ReLU after depthwise convolutions, which the paper has
    not. The first convolution of all, of 24 channels, is not in groups, and nothing is shuffled behind it."""

    def __init__(self, num_classes: int = 100) -> None:
        widths = (240, 480, 960)
        super().__init__(num_classes, widths)
        before = 24
        for number, (width, depth) in enumerate(zip(widths, (4, 8, 4), strict=True), 1):
            units = [ShuffleUnit(before, width - before, 2, 1 if before == 24 else 3, 3)]
            units += [ShuffleUnit(width, width, 1, 3, 3) for _ in range(depth - 1)]
            self.add_module(f"layer{number}", nn.Sequential(*units))
            before = width
        self.linear = nn.Linear(before, num_classes)


class SplitUnit(nn.Module):
    """Leaves the first half of the channels as it is; 1 x 1, depthwise 3 x 3 and 1 x 1 convolution of the second; shuffle."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(half, half, 1)
        self.bn1 = nn.BatchNorm2d(half)
        self.conv2 = conv(half, half, 3, groups=half)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(half, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.act = _ActivateHalf()

    def forward(self, value: Tensor) -> Tensor:
        left, right = value.chunk(2, dim=1)
        inner = F.relu(self.bn1(self.conv1(right)), inplace=True)
        return self.act(torch.cat([left, self.bn3(self.conv3(self.bn2(self.conv2(inner))))], dim=1))


class _ActivateHalf(nn.Module):
    """ReLU of the second half of the channels, then their shuffle. What it is given is the map before the activation."""

    def forward(self, value: Tensor) -> Tensor:
        left, right = value.chunk(2, dim=1)
        return shuffle(torch.cat([left, right.relu()], dim=1), 2)


class DownUnit(nn.Module):
    """Two branches of stride 2, concatenated and shuffled: depthwise 3 x 3 and 1 x 1; and 1 x 1, depthwise 3 x 3, 1 x 1."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = conv(channels_in, channels_in, 3, 2, groups=channels_in)
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.conv2 = conv(channels_in, half, 1)
        self.bn2 = nn.BatchNorm2d(half)
        self.conv3 = conv(channels_in, half, 1)
        self.bn3 = nn.BatchNorm2d(half)
        self.conv4 = conv(half, half, 3, 2, groups=half)
        self.bn4 = nn.BatchNorm2d(half)
        self.conv5 = conv(half, half, 1)
        self.bn5 = nn.BatchNorm2d(half)

    def forward(self, value: Tensor) -> Tensor:
        left = self.bn2(self.conv2(self.bn1(self.conv1(value))))
        right = self.bn4(self.conv4(F.relu(self.bn3(self.conv3(value)), inplace=True)))
        return shuffle(F.relu(torch.cat([left, self.bn5(self.conv5(right))], dim=1), inplace=True), 2)


class ShuffleV2(_ShuffleNet):
    """ShuffleNet V2, size 1 (Ma et al., arXiv:1807.11164). The embedding is that of a last convolution, not of the last map. A map
    before its activation is not shuffled: its channels have another order than those of the map."""

    def __init__(self, num_classes: int = 100) -> None:
        widths = (116, 232, 464)
        super().__init__(num_classes, widths)
        before = 24
        for number, (width, depth) in enumerate(zip(widths, (3, 7, 3), strict=True), 1):
            units = (DownUnit(before, width), *(SplitUnit(width) for _ in range(depth)))
            self.add_module(f"layer{number}", nn.Sequential(*units))
            before = width
        self.conv2 = conv(before, 1024, 1)
        self.bn2 = nn.BatchNorm2d(1024)
        self.linear = nn.Linear(1024, num_classes)

    def steps(self) -> list[Step]:
        return [*super().steps(), lambda value: F.relu(self.bn2(self.conv2(value)), inplace=True)]


def shuffle(value: Tensor, groups: int) -> Tensor:
    """Deal the channels of (B, c, h, w) out to ``groups`` in turn."""
    return value.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


def _conv_bn_relu(channels_in: int, channels: int, size: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [conv(channels_in, channels, size, stride, groups), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
