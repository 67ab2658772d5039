"""Pieces that methods share: shapes, warm-up, initialisation, and products that stay in single precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.blocks import (
    embedding_map,
    init_like_ofa,
    inner_products,
    resize_map,
    tokens_to_map,
    warmup_factor,
)
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


def test_a_map_that_shrinks_on_one_side_alone_is_averaged() -> None:
    value = torch.arange(16.0).square().view(1, 1, 8, 2)
    torch.testing.assert_close(resize_map(value, (2, 2)), value.unflatten(2, (2, 4)).mean(dim=3))


def test_tokens_fill_a_map_row_by_row() -> None:
    tokens = torch.randn(2, 6, 4)
    found = tokens_to_map(tokens, 2, 3)
    assert found.shape == (2, 4, 2, 3)
    assert torch.equal(found[:, :, 1, 0], tokens[:, 3])


def test_the_mean_of_a_map_becomes_the_embedding() -> None:
    feature_map, embedding = torch.randn(2, 8, 3, 3), torch.randn(2, 8)
    torch.testing.assert_close(embedding_map(feature_map, embedding).mean(dim=(2, 3)), embedding)
    torch.testing.assert_close(embedding_map(feature_map, feature_map.mean(dim=(2, 3))), feature_map)


def test_warm_up_begins_with_its_first_part_and_ends_with_the_whole() -> None:
    assert [warmup_factor(epoch, 4) for epoch in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0
