"""Cost of a trained student at inference: multiply-adds per image, images per second, parameters beyond the net's own."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

#: Images per timed batch: enough to occupy the device, and the same for every net of an input size, so that figures compare.
TIMED_BATCH = {"cpu": 64}
TIMED_BATCH_ELSEWHERE = 256
#: Pixels per timed batch on a CPU, which then has fewer images, but at least 8.
TIMED_PIXELS = 64 * 64 * 64
#: Batches are timed for so many seconds, at most so many batches, after one to warm up.
TIMED_SECONDS, TIMED_BATCHES = 0.05, 20

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class InferenceCost:
    """Cost of one net at inference. NaN where it could not be measured.

    Attributes:
        gmacs: 10⁹ multiply-adds of one image.
        images_per_second: median over batches of ``batch`` images, on the device where it was trained.
        batch: images per timed batch.
        extra_parameters: numbers that inference needs besides those of the net (``used_by``).
    """

    gmacs: float
    images_per_second: float
    batch: int
    extra_parameters: int


def inference_cost(
    predict: Predict, input_size: tuple[int, int], device: torch.device, method: nn.Module | None = None
) -> InferenceCost:
    """Measure a net in evaluation mode. Where that fails the cost is NaN, and the result is kept.

    Args:
        predict: raw images (B, 3, h, w) in [0, 1] to logits.
        input_size: (height, width) of the net's input in pixels.
        device: where the net lies.
        method: its parameters and buffers count as extra where ``predict`` uses them.
    """
    batch = TIMED_BATCH.get(device.type, TIMED_BATCH_ELSEWHERE)
    if device.type == "cpu":
        batch = min(batch, max(8, TIMED_PIXELS // (input_size[0] * input_size[1])))
    one = torch.full((1, 3, *input_size), 0.5, device=device)
    try:
        gmacs = count_macs(predict, one) / 1e9
        extra = 0 if method is None else used_by(predict, one, method)
        return InferenceCost(gmacs, throughput(predict, one.expand(batch, -1, -1, -1).clone()), batch, extra)
    except Exception:  # in a plugin's ``predict``, or out of memory
        return InferenceCost(math.nan, math.nan, batch, 0)


class MacCounter(contextlib.ExitStack):
    """Counts multiply-adds of matrix products, convolutions and attention within it, biases and activations not counted.

    torch counts two operations per multiply-add: its figure is halved. Attention runs unfused, as two matrix products, so that
    every version of torch counts it. Works on the device "meta" too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._counter = FlopCounterMode(display=False)

    def __enter__(self) -> MacCounter:
        self.enter_context(self._counter)
        self.enter_context(sdpa_kernel(SDPBackend.MATH))
        return self

    @property
    def macs(self) -> int:
        """As far as it counted."""
        return int(self._counter.get_total_flops()) // 2


@torch.no_grad()
def count_macs(predict: Predict, images: Tensor) -> int:
    """Multiply-adds of a prediction; see ``MacCounter``."""
    with MacCounter() as counter:
        predict(images)
    return counter.macs


@torch.no_grad()
def throughput(predict: Predict, images: Tensor) -> float:
    """Images per second: the median over batches, after one to warm up."""
    predict(images)
    seconds: list[float] = []
    _wait(images.device)
    while len(seconds) < TIMED_BATCHES and sum(seconds) < TIMED_SECONDS:
        start = time.perf_counter()
        predict(images)
        _wait(images.device)
        seconds.append(time.perf_counter() - start)
    return len(images) / median(seconds)


@torch.no_grad()
def used_by(predict: Predict, images: Tensor, module: nn.Module) -> int:
    """Number of values of ``module`` that a prediction uses: parameters and floating-point buffers, without running statistics."""
    candidates: dict[int, Tensor] = {id(parameter): parameter for parameter in module.parameters()}
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and not name.rpartition(".")[2].startswith("running_"):
            candidates[id(buffer)] = buffer
    if not candidates:
        return 0
    with _Arguments() as seen:
        predict(images)
    return sum(tensor.numel() for key, tensor in candidates.items() if key in seen.ids)


class _Arguments(TorchFunctionMode):
    """Remembers which tensors torch's functions were called with."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for value in (*args, *(kwargs or {}).values()):
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, Tensor):
                    self.ids.add(id(item))
        return func(*args, **(kwargs or {}))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
