"""Where the time of a cohort's step goes: torch's profiler over a few steps, its table trimmed, and the share of each part.

    python -m benchmarks.profile [--pair vit-l--resnet-s] [--methods kd,fitnet] [--to FILE]

On a GPU it also says what share of the time the GPU was idle: the time that passed less the time in kernels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.cohort import METHODS
from benchmarks.common import machine, parser
from benchmarks.setting import Stepper, make_cohort, make_images, make_pipeline, make_setting, make_teacher

#: Operations whose time is the nets' and the methods' arithmetic, by the beginnings of their names.
_ARITHMETIC = ("aten::mkldnn", "aten::convolution_backward", "aten::cudnn", "aten::addmm", "aten::mm", "aten::bmm",
               "aten::native_batch_norm", "aten::native_layer_norm", "aten::_scaled", "aten::gelu", "aten::threshold")  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile and print."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=3)
    arguing.add_argument("--pair", default="vit-l--resnet-s", help="of cifar100-32, or with resnet18")
    arguing.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    arguing.add_argument("--batch-size", type=int, default=128)
    arguing.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    arguing.add_argument("--threads", type=int, default=1)
    arguing.add_argument("--rows", type=int, default=15)
    options = arguing.parse_args(arguments)
    device = torch.device(options.device)
    setting = make_setting(
        options.pair, device, options.batch_size, 10_000, options.threads,
        augment={"crop_padding": 4, "flip": True}, precision=options.precision,
    )  # fmt: skip
    head = machine(device)
    stepper = Stepper(
        make_cohort(
            setting, options.methods.split(","), make_pipeline(setting, make_images(10_000)), make_teacher(setting)
        )
    )
    stepper(2 if device.type == "cpu" else 10)
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profile(activities=kinds) as found:
        begun = time.perf_counter()
        stepper(options.repeats)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        passed = time.perf_counter() - begun
    text = report(found, passed, options.repeats, device, options.rows)
    text = f"{head['device']}, torch {head['versions']['torch']}, {options.pair}, {options.methods}, batch {options.batch_size}\n{text}"
    print(text)
    if options.to:
        options.to.parent.mkdir(parents=True, exist_ok=True)
        options.to.write_text(text + "\n")
    return 0


def report(found: Any, passed: float, steps: int, device: torch.device, rows: int) -> str:
    """The largest operations by their own time, and what they add up to."""
    cuda = device.type == "cuda"

    def own(event: Any) -> float:
        return float(event.self_device_time_total if cuda else event.self_cpu_time_total) / 1e6

    events = sorted(found.key_averages(), key=own, reverse=True)
    total = sum(own(event) for event in events)
    lines = [f"{'share':>6} {'ms per step':>12} {'calls':>7}  operation"]
    for event in events[:rows]:
        share = own(event) / total
        lines.append(f"{share:6.1%} {1000 * own(event) / steps:12.1f} {event.count / steps:7.0f}  {event.key[:80]}")
    rest = sum(own(event) for event in events[rows:])
    lines.append(f"{rest / total:6.1%} {1000 * rest / steps:12.1f} {'':7}  {len(events) - rows} others")
    if cuda:
        lines.append(f"GPU idle: {1 - total / passed:.1%} of {1000 * passed / steps:.1f} ms")
    else:
        arithmetic = sum(own(event) for event in events if event.key.startswith(_ARITHMETIC))
        lines.append(f"products, convolutions, normalisation, activations: {arithmetic / total:.1%}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
