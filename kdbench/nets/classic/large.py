"""Residual nets and VGG for 32 px."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.nets.classic.net import ClassicNet, Step, conv, initialise


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions; the shortcut is a projection where stride or width changes (type B of He et al.)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(channels_in, channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(channels_in, channels, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, value: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(value)), inplace=True)
        return self.act(self.bn2(self.conv2(inner)) + self.downsample(value))


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 (which has the stride) and 1 x 1 convolution to four times the width."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        width = channels // 4
        self.conv1 = conv(channels_in, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, channels, 1)
        self.bn3 = nn.BatchNorm2d(channels)
        self.shortcut = _shortcut(channels_in, channels, stride)
        self.act = nn.ReLU(inplace=True)

    def forward(self, value: Tensor) -> Tensor:
        inner = F.relu(self.bn1(self.conv1(value)), inplace=True)
        inner = F.relu(self.bn2(self.conv2(inner)), inplace=True)
        return self.act(self.bn3(self.conv3(inner)) + self.shortcut(value))


class _ResNet(ClassicNet):
    """A 3 x 3 stem without pooling, then stages of residual blocks with strides 1, 2, 2 ... (He et al. 2016).

    Args:
        widths: of the stem and of each stage.
        depths: blocks of each stage.
    """

    block: type[BasicBlock] | type[Bottleneck]

    def __init__(self, widths: Sequence[int], depths: Sequence[int], num_classes: int = 100) -> None:
        super().__init__(num_classes, [(widths[0], 1), *((width, 2**n) for n, width in enumerate(widths[1:]))])
        self.conv1 = conv(3, widths[0], 3)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act = nn.ReLU(inplace=True)
        for number, ((channels_in, channels), depth) in enumerate(zip(pairwise(widths), depths, strict=True), 1):
            first = self.block(channels_in, channels, 1 if number == 1 else 2)
            blocks = (first, *(self.block(channels, channels, 1) for _ in range(depth - 1)))
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.add_module(self.classifier_name, nn.Linear(widths[-1], num_classes))
        initialise(self)

    def _stages(self) -> list[Any]:
        return [self.get_submodule(f"layer{number}") for number in range(1, len(self.feature_info))]

    def steps(self) -> list[Step]:
        return [lambda images: self.act(self.bn1(self.conv1(images))), *self._stages()]

    def activations(self) -> list[nn.Module]:
        return [self.act, *(stage[-1].act for stage in self._stages())]


class ResNet(_ResNet):
    """resnet8 to resnet110, and the wide resnet8x4 and resnet32x4."""

    block = BasicBlock


class ResNet50(_ResNet):
    """ResNet50 with a stem that keeps the resolution."""

    block, classifier_name = Bottleneck, "linear"


def _shortcut(channels_in: int, channels: int, stride: int) -> nn.Module:
    if (channels_in, stride) == (channels, 1):
        return nn.Identity()
    return nn.Sequential(conv(channels_in, channels, 1, stride), nn.BatchNorm2d(channels))


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each convolution; a projected shortcut has neither, and starts from the activated input."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels_in)
        self.act = nn.ReLU(inplace=True)
        self.conv1 = conv(channels_in, channels, 3, stride)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = conv(channels, channels, 3)
        self.convShortcut = conv(channels_in, channels, 1, stride) if channels_in != channels else None

    def forward(self, value: Tensor) -> Tensor:
        active = self.act(self.bn1(value))
        inner = self.conv2(F.relu(self.bn2(self.conv1(active)), inplace=True))
        return inner + (value if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """The blocks of a stage."""

    def __init__(self, channels_in: int, channels: int, stride: int, depth: int) -> None:
        super().__init__()
        rest = (WideBlock(channels, channels, 1) for _ in range(depth - 1))
        self.layer = nn.Sequential(WideBlock(channels_in, channels, stride), *rest)

    def forward(self, value: Tensor) -> Tensor:
        return self.layer(value)


class WRN(ClassicNet):
    """Wide residual net (Zagoruyko and Komodakis, arXiv:1605.07146), without dropout.

    Its maps are the raw sums, which no BatchNorm or ReLU has seen; before the activation means behind the BatchNorm that
    follows, which is taken where the net runs it, once in a step.

    Args:
        depth: 6 n + 4 for n blocks in each stage.
        width: factor of the channels.
    """

    def __init__(self, depth: int, width: int, num_classes: int = 100) -> None:
        widths = (16, 16 * width, 32 * width, 64 * width)
        super().__init__(num_classes, list(zip(widths, (1, 1, 2, 4), strict=True)))
        blocks = (depth - 4) // 6
        self.conv1 = conv(3, 16, 3)
        self.block1 = WideStage(widths[0], widths[1], 1, blocks)
        self.block2 = WideStage(widths[1], widths[2], 2, blocks)
        self.block3 = WideStage(widths[2], widths[3], 2, blocks)
        self.bn1 = nn.BatchNorm2d(widths[3])
        self.act = nn.ReLU(inplace=True)
        self.fc = nn.Linear(widths[3], num_classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    def steps(self) -> list[Step]:
        return [self.conv1, self.block1, self.block2, self.block3, lambda value: self.act(self.bn1(value))]

    def activations(self) -> list[nn.Module]:
        following: list[Any] = [stage.layer[0] for stage in (self.block1, self.block2, self.block3)]
        return [*(block.act for block in following), self.act]


class VGG(ClassicNet):
    """VGG with BatchNorm (Simonyan and Zisserman, arXiv:1409.1556): five blocks, pooled before the second, third and fourth, and
    one linear layer.

    Args:
        depths: convolutions of each block.
    """

    classifier_name = "classifier"

    def __init__(self, depths: Sequence[int], num_classes: int = 100) -> None:
        widths = (64, 128, 256, 512, 512)
        super().__init__(num_classes, list(zip(widths, (1, 2, 4, 8, 8), strict=True)))
        for number, ((channels_in, channels), depth) in enumerate(zip(pairwise((3, *widths)), depths, strict=True)):
            layers: list[nn.Module] = []
            for place in range(depth):
                layers += [nn.ReLU(inplace=True)] if place else []
                layers.append(nn.Conv2d(channels if place else channels_in, channels, 3, padding=1))
                layers.append(nn.BatchNorm2d(channels))
            self.add_module(f"block{number}", nn.Sequential(*layers))
        self.acts = nn.ModuleList(nn.ReLU(inplace=True) for _ in widths)
        self.classifier = nn.Linear(widths[-1], num_classes)
        initialise(self, linear_std=0.01)

    def steps(self) -> list[Step]:
        return [partial(self._block, number) for number in range(len(self.acts))]

    def _block(self, number: int, value: Tensor) -> Tensor:
        value = F.max_pool2d(value, 2) if number in (1, 2, 3) else value
        return self.acts[number](self.get_submodule(f"block{number}")(value))

    def activations(self) -> list[nn.Module]:
        return list(self.acts)
