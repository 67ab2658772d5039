"""What a GPU has to show in some minutes: that every method runs on it without waiting for it, how busy it is, what lasts bit for bit.

    python -m benchmarks.gpu [--device cuda] [--only NAME ...] [--steps N] [--to FILE]

Each check stands for itself: one that raises is written down with its error, and the next one begins. With ``--device cpu``
those run that need no GPU. The images are made up.
"""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.common import machine, parser, positive
from benchmarks.gpu_checks import (
    Options,
    busy,
    determinism,
    large,
    matrix,
    memory,
    methods,
    random_streams,
    runs,
    settings,
    streams,
)
from kdbench.engine.faults import free_memory
from kdbench.errors import KdbenchError

#: What runs, in this order, and whether it needs a GPU.
CHECKS: dict[str, tuple[Callable[[Options], Any], bool]] = {
    "methods": (methods, False),
    "runs": (runs, True),
    "determinism": (determinism, False),
    "memory": (memory, True),
    "busy": (busy, False),
    "random_streams": (random_streams, False),
    "settings": (settings, True),
    "large": (large, True),
    "streams": (streams, True),
    "matrix": (matrix, True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; the exit status is 1 where one raised."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=None)
    arguing.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME")
    arguing.add_argument("--steps", type=positive, default=30, help="timed steps (default: 30; on a CPU at most 2)")
    given = arguing.parse_args(arguments)
    device = torch.device(given.device)
    options = Options(device, given.steps if device.type == "cuda" else min(2, given.steps))
    head = machine(options.device)
    found = []
    for name in given.only:
        check, needs_gpu = CHECKS[name]
        if needs_gpu and not options.cuda:
            print(f"{name}: needs a GPU", flush=True)
            continue
        print(f"{name}: {(check.__doc__ or '').strip()}", flush=True)
        begun = time.perf_counter()
        entry: dict[str, Any] = {"check": name, "expected": (check.__doc__ or "").strip()}
        try:
            entry["found"] = check(options)
        except Exception as error:
            traceback.print_exc()
            entry["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        entry["seconds"] = round(time.perf_counter() - begun, 1)
        print(f"  {json.dumps(entry.get('found', entry.get('error')))}  ({entry['seconds']} s)", flush=True)
        found.append(entry)
        free_memory(options.device)
        if given.to is not None:  # now: the machine may be taken away
            given.to.parent.mkdir(parents=True, exist_ok=True)
            given.to.write_text(json.dumps({"benchmark": "gpu", "machine": head, "checks": found}, indent=2) + "\n")
    return int(any("error" in entry for entry in found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KdbenchError as problem:
        sys.exit(f"benchmarks.gpu: {problem}")
