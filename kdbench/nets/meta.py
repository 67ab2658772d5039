"""Building nets and methods without memory for their values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def without_data() -> Iterator[None]:
    """New tensors lie on the device "meta", where they have no content."""
    with torch.device("meta"), _WithoutClamping():
        yield


class _WithoutClamping(TorchFunctionMode):
    """Tensors without content are not clamped in place: torch's Python code for that is most of what truncated normals take."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.clamp_ and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))
