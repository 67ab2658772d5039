"""Pieces that methods share: their initialisation, and products that stay in single precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.blocks import init_like_ofa, inner_products
from kdbench.methods.lfcc import contrast_loss
from kdbench.methods.msdcrd import contrast
from kdbench.methods.tas import info_nce


def test_initialisation_of_ofa_leaves_the_biases_of_convolutions_to_torch() -> None:
    """Hao840/OFAKD @ f7bb896, distillers/utils.py: of a convolution only the weight is drawn."""
    layers = nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Linear(64, 32))
    before = layers[0].bias.detach().clone()
    init_like_ofa(layers)
    assert torch.equal(layers[0].bias, before)
    assert before.any()
    assert layers[0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)  # fan out
    assert layers[2].weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert not layers[2].bias.any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t: info_nce(s, t, 0.07),
        lambda s, t: contrast_loss(s, t, 0.07),
        lambda s, t: contrast(s[None], t[None], 0.07),
        lambda s, t: inner_products(s, t).logsumexp(1).sum(),
    ],
    ids=["tas", "lfcc", "msdcrd", "product"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_contrast_under_autocast_equals_that_of_the_same_numbers_in_single_precision(
    loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    student, teacher = (F.normalize(torch.randn(32, 64), dim=1).to(dtype) for _ in range(2))
    expected = loss(student.double(), teacher.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(student, teacher)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
