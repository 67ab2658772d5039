"""Building without memory for values."""

from __future__ import annotations

import torch

from kdbench.nets.meta import without_data


def test_nets_are_built_without_content_and_what_has_content_is_computed() -> None:
    with without_data():
        linear = torch.nn.Linear(3, 2)
        torch.nn.init.trunc_normal_(linear.weight)
        values = torch.ones(2, device="cpu").clamp_(max=0.5)
    assert linear.weight.is_meta
    assert values.tolist() == [0.5, 0.5]
    assert not torch.nn.Linear(3, 2).weight.is_meta
