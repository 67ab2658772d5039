"""Counts what a step of each suite dispatches, and its multiply-adds: what a GPU without CUDA graphs waits for, and what it computes.

    python -m benchmarks.operations [--suites NAME ...] [--to FILE]

The first pair of each suite with the suite's default methods, on the CPU, images made up, batches of four: the number of
operations does not depend on the batch. Nothing is timed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.common import machine, parser
from benchmarks.setting import Stepper, make_cohort, make_pipeline, make_setting, make_teacher
from kdbench.nets.cost import MacCounter
from kdbench.suite.suite import load_suite

SUITES = ("digits", "cifar100-tiny", "cifar100-32", "cifar100-classic", "cifar100", "imagenet1k")
BATCH, WARM = 4, 2


class Counter(TorchDispatchMode):
    """Counts operations; views launch nothing and are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not (func.is_view or func.namespace == "prim" or func.overloadpacket is torch.ops.aten.detach)
        return func(*args, **(kwargs or {}))


def count(suite: str) -> dict[str, Any]:
    """Operations of a step of each cell, of what they share, and of all; 10⁹ multiply-adds of all for each image."""
    found = load_suite(suite)
    pair = str(found.pairs[0])
    changes: dict[str, Any] = {"augment": {"flip": True}, "pipeline": "device", "drop_path": 0.0}
    setting = make_setting(pair, torch.device("cpu"), BATCH, 64, suite=suite, **changes)
    pipeline, teacher = make_pipeline(setting), make_teacher(setting)
    model = make_cohort(setting, found.methods.default, pipeline, teacher)
    step = Stepper(model)
    step(WARM)
    cells = {}
    for cell in model.cells:
        shared = model.share(pipeline.make(0, 0))
        with Counter() as counter:
            cell.step(shared.data.batch, *shared.given_to(cell))
        cells[cell.key] = counter.count
    with Counter() as whole:
        step()
    with MacCounter() as macs:
        step()
    return {
        "pair": pair,
        "cells": cells,
        "shared": whole.count - sum(cells.values()),
        "operations": whole.count,
        "gmacs_per_image": round(macs.macs / BATCH / 1e9, 4),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, print and write."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=None, device=False)
    arguing.add_argument("--suites", nargs="+", choices=SUITES, default=list(SUITES), metavar="NAME")
    options = arguing.parse_args(arguments)
    found = {}
    for suite in options.suites:
        found[suite] = count(suite)
        print(suite, found[suite], flush=True)
    if options.to is not None:
        content = {"benchmark": "operations", "machine": machine(torch.device("cpu")), "suites": found}
        options.to.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
