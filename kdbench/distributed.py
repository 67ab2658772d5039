"""What methods need to know of other processes: nothing in a single process, one gather under DDP."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes that train this cohort together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Position of this process, 0 when it is alone."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


class _GatherWithGradient(torch.autograd.Function):
    """All-gather along the batch whose backward sums the gradients of all ranks for the local part."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(world_size())]
        dist.all_gather(parts, value.contiguous())
        ctx.length = value.shape[0]
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # it may be shared with another gather
        dist.all_reduce(gradient)
        start = rank() * ctx.length
        return gradient[start : start + ctx.length]


def gather_batch(value: Tensor) -> Tensor:
    """Concatenate ``value`` (B, ...) of all ranks to (world * B, ...), in the order of the ranks.

    A loss that every rank computes on the gathered batch has, after DDP's averaging of gradients, the gradient of one
    process on the joint batch. In a single process the tensor itself is returned.
    """
    if world_size() == 1:
        return value
    if value.requires_grad:
        return _GatherWithGradient.apply(value)
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.contiguous())
    return torch.cat(parts)
