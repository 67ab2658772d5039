"""What methods need to know of other processes: nothing in a single process, one gather and one draw under DDP."""

from __future__ import annotations

import functools
from collections.abc import Callable
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


def rows_of(process: int, processes: int, size: int) -> Tensor:
    """Positions in the global batch of ``size`` images that a process gets, ascending.

    Mixup and cutmix mix image i with image size - 1 - i. A process gets both of each such pair, where its share is even, so
    that it can mix without the images of others. An odd share is a plain slice.

    Raises:
        ValueError: if the processes cannot have equal shares.
    """
    if size % processes:
        raise ValueError(f"a batch of {size} cannot be shared equally by {processes} processes")
    share = size // processes
    if share % 2:
        return torch.arange(process * share, (process + 1) * share)
    front = torch.arange(process * share // 2, (process + 1) * share // 2)
    return torch.cat([front, (size - 1 - front).flip(0)])


@functools.lru_cache(maxsize=64)
def _rows_on(device: torch.device, process: int, processes: int, size: int) -> Tensor:
    """``rows_of`` on a device, which waits for the copy: once, not in every step."""
    return rows_of(process, processes, size).to(device)


@functools.lru_cache(maxsize=64)
def _order_on(device: torch.device, processes: int, size: int) -> Tensor:
    """Where each row of the global batch stands among those of all processes, one process after the other."""
    return torch.cat([rows_of(process, processes, size) for process in range(processes)]).argsort().to(device)


def _ordered(parts: list[Tensor]) -> Tensor:
    """The rows of all processes, as one process would have them."""
    size = sum(len(part) for part in parts)
    return torch.cat(parts)[_order_on(parts[0].device, len(parts), size)]


def draw_for_batch(draw: Callable[[int], Tensor], count: int) -> Tensor:
    """Random numbers for the ``count`` samples of this process: drawn for the global batch, of which it takes its rows.

    All processes draw from the same stream, so that together they draw what a single process would.

    Args:
        draw: number of samples n -> (n, ...).
        count: number of samples of this process.
    """
    processes = world_size()
    whole = draw(count * processes)
    return whole if processes == 1 else whole[_rows_on(whole.device, rank(), processes, count * processes)]


class _GatherWithGradient(torch.autograd.Function):
    """All-gather along the batch whose backward sums the gradients of all ranks for the local part."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        parts = [torch.empty_like(value) for _ in range(world_size())]
        dist.all_gather(parts, value.contiguous())
        ctx.length = value.shape[0]
        return _ordered(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # it may be shared with another gather
        dist.all_reduce(gradient)
        return gradient[_rows_on(gradient.device, rank(), world_size(), world_size() * ctx.length)]


def gather_batch(value: Tensor) -> Tensor:
    """Concatenate ``value`` (B, ...) of all ranks to (world * B, ...), in the order of the global batch (see ``rows_of``).

    A loss that every rank computes on the gathered batch has, after DDP's averaging of gradients, the gradient of one
    process on the joint batch. In a single process the tensor itself is returned.
    """
    if world_size() == 1:
        return value
    if value.requires_grad:
        return _GatherWithGradient.apply(value)
    parts = [torch.empty_like(value) for _ in range(world_size())]
    dist.all_gather(parts, value.contiguous())
    return _ordered(parts)
