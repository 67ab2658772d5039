"""Every net of some suites in both memory formats, side by side: a training step and a forward pass without gradients.

    python -m benchmarks.memory_format [--suites NAME ...] [--device cuda] [--to FILE]

A ratio below 1 says that channels-last is faster. A student should be judged by its step, a teacher by its forward pass.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F

import kdbench.engine.process  # noqa: F401 - first, so that its message comes before a traceback
from benchmarks.common import machine, parser
from benchmarks.sides import Finding, Timing, add_arguments, finish, measure, ratio
from kdbench.engine.compiled import Forward
from kdbench.engine.process import keep_freed_memory
from kdbench.engine.teacher import freeze
from kdbench.nets.tapped import TappedNet
from kdbench.suite.suite import Suite, load_suite, split_pair

SUITES = ("digits", "cifar100-32", "imagenet-mini")
FORMATS: tuple[Literal["contiguous"], Literal["channels_last"]] = ("contiguous", "channels_last")
#: On a CPU a batch has at most so many pixels, at least 4 images.
MOST_PIXELS = 128 * 64 * 64
#: How often the work is done for one measurement.
TIMES = 3
LOGITS = frozenset({"logits"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options, device, clock, head = begin(arguments, __doc__, SUITES)
    findings: list[Finding] = []
    timings: dict[str, Timing] = {}
    batches: dict[str, int] = {}
    for suite in map(load_suite, options.suites):
        for name, teaches in roles(suite).items():
            size = 2 if options.quick else batch_size(suite, name, device)
            batches[f"{suite.name} {name}"] = size
            title = f"{suite.name}, {name}, {'forward pass' if teaches else 'training step'}"
            works: dict[str, Callable[[], object]] = {
                memory_format: (forward if teaches else training_step)(
                    make_net(suite, name, memory_format, device), size
                )
                for memory_format in FORMATS
            }
            found = measure(works, 1 if options.quick else options.repeats, device)
            timings |= {f"{title}, {memory_format}": timing for memory_format, timing in found.items()}
            fraction = ratio(found["channels_last"].on(clock), found["contiguous"].on(clock))
            findings.append(Finding(f"{title}: channels_last / contiguous", fraction))
            print(findings[-1], flush=True)
        if options.quick:
            break
    return finish(
        "memory_format", findings, timings, head, options, clock, batch_sizes=batches, threads=options.threads
    )


def begin(
    arguments: Sequence[str] | None, description: str | None, suites: Sequence[str]
) -> tuple[argparse.Namespace, torch.device, str, dict[str, Any]]:
    """Options of a benchmark of suites' nets, its device and clock, and the head of its result."""
    arguing = parser((description or "").partition("\n")[0], repeats=7)
    add_arguments(arguing)
    arguing.add_argument("--suites", nargs="+", default=suites, metavar="NAME")
    options = arguing.parse_args(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    return options, device, options.clock or ("wall" if device.type == "cuda" else "core"), machine(device)


def training_step(net: TappedNet, size: int, compile: bool = False) -> Callable[[], object]:
    """Forward pass, cross-entropy, backward pass and a step of SGD, ``TIMES`` times."""
    net.train()
    run = Forward(net, compile)
    images, labels = make_batch(net, size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)

    def steps() -> None:
        for _ in range(TIMES):
            optimizer.zero_grad()
            F.cross_entropy(run(net.preprocess(images), LOGITS).logits, labels).backward()
            optimizer.step()

    return steps


def forward(net: TappedNet, size: int, compile: bool = False) -> Callable[[], object]:
    """What a teacher does for a batch, ``TIMES`` times."""
    freeze(net)
    run = Forward(net, compile)
    images, _ = make_batch(net, size)

    @torch.no_grad()
    def passes() -> None:
        for _ in range(TIMES):
            run(net.preprocess(images), LOGITS)

    return passes


def make_batch(net: TappedNet, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise, and labels in turn."""
    device = net.mean.device
    return torch.rand(size, 3, *net.input_size, device=device), torch.arange(size, device=device) % 10


def roles(suite: Suite) -> dict[str, bool]:
    """Whether each net of the pairs teaches; one that also learns is judged as a student."""
    pairs = [split_pair(pair) for pair in suite.pairs]
    students = {student for _, student in pairs}
    return {name: name not in students for pair in pairs for name in pair}


def batch_size(suite: Suite, name: str, device: torch.device) -> int:
    """That of the recipe under the default protocol."""
    protocol, net = suite.under(suite.default_protocol), suite.net(name)
    assert net.family is not None
    size = min(protocol.recipes[suite.recipe_name(name, net.family)].batch_size, 256)
    if device.type == "cuda":
        return size
    height, width = TappedNet(net, 10).input_size
    return min(size, max(4, MOST_PIXELS // (height * width)))


def make_net(
    suite: Suite, name: str, memory_format: Literal["contiguous", "channels_last"], device: torch.device
) -> TappedNet:
    """A net of a suite, in a memory format, with weights as drawn."""
    torch.manual_seed(0)
    spec = suite.net(name).model_copy(update={"memory_format": memory_format})
    return TappedNet(spec, suite.dataset.width, name).to(device)


if __name__ == "__main__":
    sys.exit(main())
