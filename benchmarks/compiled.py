"""The nets of some suites as they are and through ``torch.compile`` (``--compile``), side by side, with what their embeddings differ by.

    python -m benchmarks.compiled [--suites NAME ...] [--device cuda] [--to FILE]

A ratio below 1 says that compiled is faster. A student is judged by a training step, a teacher by its forward pass.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

import kdbench.engine.process  # noqa: F401 - first, so that its message comes before a traceback
from benchmarks.memory_format import batch_size, begin, forward, make_batch, make_net, roles, training_step
from benchmarks.sides import Finding, Timing, finish, measure, ratio
from kdbench.engine.compiled import TOLERANCE, Forward
from kdbench.nets.tapped import TappedNet
from kdbench.suite.suite import load_suite

SUITES = ("digits", "cifar100-tiny")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    options, device, clock, head = begin(arguments, __doc__, SUITES)
    findings: list[Finding] = []
    timings: dict[str, Timing] = {}
    compiled: dict[str, Any] = {}
    for suite in map(load_suite, options.suites):
        for name, teaches in list(roles(suite).items())[: 1 if options.quick else None]:
            size = 2 if options.quick else batch_size(suite, name, device)
            title = f"{suite.name}, {name}, {'forward pass' if teaches else 'training step'}"
            net = make_net(suite, name, suite.net(name).memory_format, device)
            difference = differs_by(net, size)
            plain, fused = ((forward if teaches else training_step)(net, size, compile) for compile in (False, True))
            begun = time.perf_counter()
            fused()
            compiled[title] = {
                "batch": size,
                "seconds to compile": round(time.perf_counter() - begun, 1),
                "embeddings differ by": difference,
            }
            found = measure({"plain": plain, "compiled": fused}, 1 if options.quick else options.repeats, device)
            timings |= {f"{title}, {way}": timing for way, timing in found.items()}
            fraction = ratio(found["compiled"].on(clock), found["plain"].on(clock))
            findings.append(
                Finding(f"{title}: compiled / plain", fraction, note=f"embeddings differ by {difference:.1g}")
            )
            print(findings[-1], flush=True)
    return finish(
        "compiled", findings, timings, head, options, clock, nets=compiled, tolerance=TOLERANCE, threads=options.threads
    )


@torch.no_grad()
def differs_by(net: TappedNet, size: int) -> float:
    """The largest difference between the embeddings of both ways, as a share of the largest value."""
    net.eval()
    images = net.preprocess(make_batch(net, size)[0])
    plain, fused = (Forward(net, compile)(images, {"embedding"}).embedding for compile in (False, True))
    assert plain is not None
    assert fused is not None
    return float((plain - fused).abs().max() / plain.abs().max())


if __name__ == "__main__":
    sys.exit(main())
