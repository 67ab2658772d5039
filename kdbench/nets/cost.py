"""What a trained student costs at inference: multiply-adds of one image, images per second, parameters beyond the net's own."""

from __future__ import annotations

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

#: Images per timed batch: enough to keep the device busy, the same for every net of an input size so that figures compare.
TIMED_BATCH = {"cpu": 64}
TIMED_BATCH_ELSEWHERE = 256
#: On a CPU large images come in batches of fewer, at least 8: pixels of a batch.
TIMED_PIXELS = 64 * 64 * 64
#: Batches are timed until so many seconds are used or so many are done, after one that warms up.
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
    """Measure a net in evaluation mode. A net that cannot be measured gives NaN: what it learned stays a result.

    Args:
        predict: raw images (B, 3, h, w) in [0, 1] to logits.
        input_size: (height, width) of the net's input in pixels.
        device: where the net lies.
        method: the module whose numbers count as extra when ``predict`` uses them.
    """
    batch = TIMED_BATCH.get(device.type, TIMED_BATCH_ELSEWHERE)
    if device.type == "cpu":
        batch = min(batch, max(8, TIMED_PIXELS // (input_size[0] * input_size[1])))
    one = torch.full((1, 3, *input_size), 0.5, device=device)
    try:
        gmacs = count_macs(predict, one) / 1e9
        extra = 0 if method is None else used_by(predict, one, method)
        return InferenceCost(gmacs, throughput(predict, one.expand(batch, -1, -1, -1).clone()), batch, extra)
    except Exception:  # a plugin's own way of inference, or too little memory
        return InferenceCost(math.nan, math.nan, batch, 0)


@torch.no_grad()
def count_macs(predict: Predict, images: Tensor) -> int:
    """Multiply-adds of matrix products, convolutions and attention, biases and activations not counted.

    torch's counter counts two operations for each multiply-add: its figure is halved. Attention is run unfused, as two
    matrix products, so that it is counted by every version of torch. Works on the device "meta" too.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        predict(images)
    return counter.get_total_flops() // 2


@torch.no_grad()
def throughput(predict: Predict, images: Tensor) -> float:
    """Images per second: one batch to warm up, then the median of some batches."""
    predict(images)
    seconds: list[float] = []
    _wait(images.device)
    while len(seconds) < TIMED_BATCHES and sum(seconds) < TIMED_SECONDS:
        begun = time.perf_counter()
        predict(images)
        _wait(images.device)
        seconds.append(time.perf_counter() - begun)
    return len(images) / median(seconds)


@torch.no_grad()
def used_by(predict: Predict, images: Tensor, module: nn.Module) -> int:
    """How many numbers of ``module`` a prediction uses: its parameters and its buffers of real numbers, running statistics not."""
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
