"""What benchmarks share: two candidates run in turn, the ratio of their times with its spread, the machine, JSON."""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdbench.store.provenance import provenance

#: Reads seconds.
Clock = Callable[[], float]


def wall_clock(device: torch.device) -> Clock:
    """Seconds that pass, with everything done that was asked of the device."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def core_clock(processes: Callable[[], Sequence[int]] = tuple) -> Clock:
    """Seconds of CPU cores that this process and others used together; other load on the machine does not count.

    Args:
        processes: gives the ids of the others, which must be alive whenever the clock is read. Linux only.
    """
    ticks = os.sysconf("SC_CLK_TCK")

    def read() -> float:
        total = time.process_time()
        for process in processes():
            fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / ticks  # user and system time
        return total

    return read


@dataclass(frozen=True)
class Candidate:
    """One way to do the work.

    Attributes:
        name: for people.
        run: does the work once.
        units: how much of ``unit`` that is (images, steps).
        clock: what its time is read from.
    """

    name: str
    run: Callable[[], object]
    clock: Clock
    units: float = 1.0
    unit: str = "runs"


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and range of repeated measurements."""

    median: float
    low_quartile: float
    high_quartile: float
    least: float
    most: float
    values: list[float] = field(repr=False)

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        least, low, median, high, most = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
        return cls(median, low, high, least, most, list(values))

    def __str__(self) -> str:
        return (
            f"{self.median:.4g} (quartiles {self.low_quartile:.4g} to {self.high_quartile:.4g}, n = {len(self.values)})"
        )


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        ratio: of the second's time to the first's, pair by pair: how many times faster the first is.
        first, second: units per second.
    """

    names: tuple[str, str]
    unit: str
    ratio: Spread
    first: Spread
    second: Spread


def compare(first: Candidate, second: Candidate, repeats: int, warm_up: int = 1) -> Comparison:
    """Run both ``repeats`` times, each pair in the other order than the last, and compare their times per unit.

    Raises:
        ValueError: for less than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"repeats = {repeats}: expected 1 or more")
    for _ in range(warm_up):
        first.run()
        second.run()
    seconds: dict[str, list[float]] = {"first": [], "second": []}
    collects = gc.isenabled()
    for number in range(repeats):
        pair = [("first", first), ("second", second)]
        for place, candidate in pair if number % 2 == 0 else pair[::-1]:
            gc.collect()
            gc.disable()  # collections fall to whoever comes next, not to whoever made the garbage
            begun = candidate.clock()
            candidate.run()
            seconds[place].append((candidate.clock() - begun) / candidate.units)
            if collects:
                gc.enable()
    return Comparison(
        (first.name, second.name),
        first.unit,
        Spread.of([b / a for a, b in zip(seconds["first"], seconds["second"], strict=True)]),
        Spread.of([1 / value for value in seconds["first"]]),
        Spread.of([1 / value for value in seconds["second"]]),
    )


def machine(device: torch.device) -> dict[str, Any]:
    """Device, cores, load, threads and versions: the head of every result."""
    return {
        **provenance(device),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_average": list(os.getloadavg()),
    }


def parser(description: str, repeats: int | None = 9, device: bool = True) -> argparse.ArgumentParser:
    """``--to``, which all benchmarks take; ``--repeats`` unless its default is None; and ``--device`` unless they run on a CPU alone."""
    built = argparse.ArgumentParser(description=description)
    if device:
        default = "cuda" if torch.cuda.is_available() else "cpu"
        built.add_argument("--device", type=_device, default=default, help=f"cpu or cuda (default here: {default})")
    if repeats is not None:
        built.add_argument("--repeats", type=positive, default=repeats, help=f"pairs of runs (default: {repeats})")
    built.add_argument("--to", type=Path, help="write the result there, as JSON")
    return built


def positive(text: str) -> int:
    """A whole number of at least 1, for ``argparse``."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _device(text: str) -> str:
    named = re.fullmatch(r"cpu|cuda(?::(\d+))?", text, re.ASCII)
    if named is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda or cuda:N")
    if text != "cpu" and int(named[1] or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"{text}: torch sees {torch.cuda.device_count()} GPUs here")
    return text


def report(
    name: str, comparison: Comparison, target: float, head: dict[str, Any], to: Path | None, **settings: Any
) -> bool:
    """Print a comparison and write it as JSON.

    Args:
        target: the least ratio that is wanted.

    Returns:
        whether the median reaches the target.
    """
    met = comparison.ratio.median >= target
    print(f"{name} on {head['device']}, torch {head['versions']['torch']}")
    for candidate, rate in zip(comparison.names, (comparison.first, comparison.second), strict=True):
        print(f"  {candidate}: {rate} {comparison.unit}/s")
    print(f"  ratio: {comparison.ratio}; target {target:g}: {'met' if met else 'missed'}")
    if to is not None:
        content = {
            "benchmark": name,
            "target": target,
            "met": met,
            "settings": settings,
            **asdict(comparison),
            "machine": head,
        }
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(json.dumps(content, indent=2) + "\n")
    return met
