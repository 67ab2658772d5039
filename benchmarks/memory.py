"""Memory of a step: what its graph keeps for the backward pass on a CPU, the allocator's peak on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Saved:
    """Bytes of the distinct storages that were kept for the backward pass within a block, those of ``known`` left out."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self.bytes = 0

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count; what is kept stays alive within the block, so that no storage counts for two."""
        kept: dict[int, Any] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._known:
                kept[storage.data_ptr()] = storage
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
            self.bytes = sum(storage.nbytes() for storage in kept.values())


def peak_of(step: Callable[[], object], known: Iterator[Tensor], device: torch.device) -> int:
    """Bytes that a step needs beside what is there before and after it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    saved = Saved(known)
    with saved.counting():
        step()
    return saved.bytes
