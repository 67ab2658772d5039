"""What the classic nets share: a chain of steps whose maps can be tapped, through timm's interface."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn

Step = Callable[[Tensor], Tensor]


class ClassicNet(nn.Module):
    """A CNN as a chain of steps: stem, stages, and what follows before the pooling.

    Map 0 is what the stem gives, map k what stage k gives. They are RepDistiller's ``feats``, of which the last is the
    embedding (github.com/HobbitLong/RepDistiller, ``models/``).

    Args:
        num_classes: width of the logits.
        maps: (channels, reduction) of each map.
    """

    #: Name of the classifier, a linear layer.
    classifier_name: ClassVar[str] = "fc"

    def __init__(self, num_classes: int, maps: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feature_info = [{"num_chs": channels, "reduction": reduction} for channels, reduction in maps]

    def steps(self) -> list[Step]:
        """Stem, stages, and the rest up to the pooling."""
        raise NotImplementedError

    def activations(self) -> list[nn.Module]:
        """For each map the module that is given it before its activation; empty for a net without such maps."""
        raise NotImplementedError

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w) to the map (B, c, h', w') that enters the pooling."""
        return self.forward_intermediates(images, ())[0]

    def forward_intermediates(self, images: Tensor, indices: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
        """The map that enters the pooling, and the maps ``indices``, which increase."""
        value, maps = images, []
        for step in self.steps():
            value = step(value)
            maps.append(value)
        return value, [maps[index] for index in indices]

    def forward_head(self, value: Tensor, pre_logits: bool = False) -> Tensor:
        """Map (B, c, h, w) to logits (B, C), or to the embedding (B, c)."""
        embedding = value.mean((2, 3))
        return embedding if pre_logits else self.get_classifier()(embedding)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, h, w) to logits (B, C)."""
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        return self.get_submodule(self.classifier_name)


def conv(channels_in: int, channels_out: int, size: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution that keeps the grid, or reduces it by ``stride``, without bias."""
    return nn.Conv2d(channels_in, channels_out, size, stride, size // 2, groups=groups, bias=False)


def initialise(net: nn.Module, linear_std: float | None = None) -> None:
    """Draw convolutions from a normal distribution of variance 2 / (k * k * channels out), their biases 0; linear layers, where
    ``linear_std`` is given, with that deviation and biases 0, else as torch does."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0, linear_std)
            nn.init.zeros_(module.bias)
