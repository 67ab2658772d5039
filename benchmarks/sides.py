"""Several pieces of work measured in turn, round by round, so that ratios are of what ran side by side; results as JSON."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import Clock, Spread, core_clock, wall_clock

FOLDER = Path("results/benchmarks")


def clock_of(name: str, device: torch.device) -> Clock:
    """``core``: seconds of CPU that this process used (others on the machine do not count); ``wall``: seconds that passed."""
    return core_clock() if name == "core" else wall_clock(device)


def add_arguments(parser: Any) -> None:
    """What these benchmarks take beside ``common.parser``: ``--clock``, ``--quick``, ``--threads``."""
    parser.add_argument(
        "--clock", choices=("core", "wall"), default=None,
        help="seconds of CPU cores used, which other work on the machine does not count in (default on a CPU), or seconds "
        "that passed (default on a GPU); both are written",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small and short, to see that it runs")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; kdbench's suites use 1 for each worker")


@dataclass(frozen=True)
class Timing:
    """Seconds of one piece of work, round by round, on both clocks."""

    core: list[float]
    wall: list[float]

    def on(self, clock: str) -> list[float]:
        return self.core if clock == "core" else self.wall


def measure(
    works: Mapping[str, Callable[[], object]], rounds: int, device: torch.device, warm_up: bool = True
) -> dict[str, Timing]:
    """Run every piece of work once without counting, then ``rounds`` times in turn, each round beginning with another."""
    for work in works.values() if warm_up else ():
        work()
    core, wall = core_clock(), wall_clock(device)
    found = {name: Timing([], []) for name in works}
    names = list(works)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            gc.disable()  # collections fall to whoever comes next, not to whoever made the garbage
            begun = wall(), core()
            works[name]()
            found[name].wall.append(wall() - begun[0])
            found[name].core.append(core() - begun[1])
            gc.enable()
    return found


def ratio(above: list[float], below: list[float]) -> Spread:
    """Round by round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def added(*timings: list[float]) -> list[float]:
    """The sum of several pieces of work, round by round."""
    return [sum(values) for values in zip(*timings, strict=True)]


@dataclass(frozen=True)
class Finding:
    """A ratio that was measured, and the most that it should be; None where there is no target."""

    name: str
    ratio: Spread
    target: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        return None if self.target is None else self.ratio.median <= self.target

    def __str__(self) -> str:
        word = {True: "met", False: "missed", None: ""}[self.met]
        target = "" if self.target is None else f"; target at most {self.target:g}: {word}"
        return f"  {self.name}: {self.ratio}{target}{f' ({self.note})' if self.note else ''}"


def finish(
    benchmark: str,
    findings: list[Finding],
    timings: Mapping[str, Timing],
    head: Mapping[str, Any],
    options: Any,
    clock: str,
    **settings: Any,
) -> int:
    """Print the findings and write everything as JSON.

    Returns:
        1 if a target was missed, else 0.
    """
    load = " ".join(f"{value:.1f}" for value in head["load_average"])
    print(f"{benchmark} on {head['device']}, torch {head['versions']['torch']}, {clock} clock, load average {load}")
    for name, timing in timings.items():
        print(f"  {name}: {Spread.of(timing.on(clock)).median * 1000:.1f} ms")
    for finding in findings:
        print(finding)
    to = options.to or (None if options.quick else FOLDER / f"{benchmark}.json")
    if to is not None:
        content = {
            "benchmark": benchmark,
            "clock": clock,
            "quick": options.quick,
            "findings": [{**asdict(finding), "met": finding.met} for finding in findings],
            "seconds": {name: asdict(timing) for name, timing in timings.items()},
            "settings": settings,
            "machine": dict(head),
            "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(content, indent=1) + "\n")
    return int(any(finding.met is False for finding in findings))
