"""How long commands that train nothing take, each in a process of its own.

    python -m benchmarks.startup [--repeats N] [--to FILE]

Seconds of the processor (user and system): what a wall clock shows depends on who else works on the machine.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.common import Spread, machine
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from kdbench.suite.suite import load_suite

#: Seconds that each command may take.
TARGET = 1.5
COMMANDS = ("--help", "run --help", "list", "list methods", "status", "table")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the target is missed."""
    arguing = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguing.add_argument("--repeats", type=int, default=5)
    arguing.add_argument("--to", type=Path, help="write the result there, as JSON")
    options = arguing.parse_args(arguments)
    found: dict[str, Spread] = {}
    with tempfile.TemporaryDirectory() as out:
        _prepare(Path(out))
        for command in COMMANDS:
            words = command.split() + (["--out", out] if command in ("status", "table") else [])
            found[command] = Spread.of([_seconds(words) for _ in range(options.repeats)])
            print(f"kdbench {command}: {found[command]} s", flush=True)
    met = all(spread.median <= TARGET for spread in found.values())
    print(f"target {TARGET:g} s: {'met' if met else 'missed'}")
    if options.to is not None:
        content = {
            "benchmark": "startup",
            "target": TARGET,
            "met": met,
            "seconds": {command: asdict(spread) for command, spread in found.items()},
            "machine": machine(torch.device("cpu")),
        }
        options.to.parent.mkdir(parents=True, exist_ok=True)
        options.to.write_text(json.dumps(content, indent=2) + "\n")
    return 0 if met else 1


def _prepare(out: Path) -> None:
    """A run directory of the suite digits in which every cell is planned."""
    store = Store(out)
    store.check(writable=True)
    for cell in make_plan(load_suite("digits"), Request(), catalog()).cells:
        store.cell(cell).prepare(cell)


def _seconds(words: Sequence[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "kdbench", *words], stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
