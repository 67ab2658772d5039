"""The self-attention of ViTs, where a net computes it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from timm.layers import Attention as SelfAttention
from torch import nn

from kdbench.method import Attention
from kdbench.nets.taps import calls_of
from kdbench.suite.net import Tap


def attention_paths(net: nn.Module, taps: Sequence[Tap]) -> list[str]:
    """Paths of the self-attention of the blocks that end the stages of a timm ViT; empty for nets whose blocks have another."""
    if not all(isinstance(tap, int) for tap in taps):
        return []
    info: Any = net.feature_info
    paths = [f"{info[int(tap)].get('module')}.attn" for tap in taps]  # classic nets name no modules
    known = {
        path
        for path, module in net.named_modules()
        if type(module) is SelfAttention and getattr(module, "gate", None) is None
    }
    return paths if known.issuperset(paths) else []


@contextlib.contextmanager
def attention_inside(net: nn.Module, paths: Sequence[str]) -> Iterator[list[Attention]]:
    """What the self-attentions at ``paths`` compute inside the block, listed when it ends."""
    found: list[Attention] = []
    with calls_of(net, [f"{path}.qkv" for path in paths]) as calls:
        yield found
    for path in paths:
        module: Any = net.get_submodule(path)
        parts = calls[f"{path}.qkv"].returned.unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
        queries, keys, values = parts.unbind(0)
        found.append(Attention(module.q_norm(queries), module.k_norm(keys), values))
