"""Several nets as one teacher."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdbench.suite.net import NetSpec


class Ensemble(nn.Module):
    """Nets that each see the image in their own preprocessing, and give the mean of their logits (Hinton et al., arXiv:1503.02531).

    With ``average: probabilities`` the logarithm of the mean of their probabilities.

    Args:
        spec: the ensemble, with its nets by name.
        num_classes: width of the logits.
        build: makes a net from raw images to ``Outputs``, of a net, the number of classes and a name.
    """

    def __init__(self, spec: NetSpec, num_classes: int, build: Callable[[NetSpec, int, str], nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(build(net, num_classes, name) for name, net in spec.members.items())
        self.of_probabilities = spec.args.get("average") == "probabilities"

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C) of raw images (B, 3, h, w) in [0, 1]."""
        logits = torch.stack([member(images).logits for member in self.members])
        if self.of_probabilities:
            return logits.log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
        return logits.mean(dim=0)
