"""``kdbench test``: a line per method, what failed beneath it, at the end the pairs that were left out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from functools import partial

import torch
from tabulate import tabulate

from kdbench.conformance.findings import Examination, Skip
from kdbench.conformance.inspector import examine
from kdbench.plugins.registry import MethodEntry


def run_checks(entries: Sequence[MethodEntry]) -> int:
    """Check methods one after the other and print what was found. Returns the number of methods that failed."""
    torch.set_num_threads(1)
    begun = time.monotonic()
    width = max(len(entry.name) for entry in entries)
    found = []
    for entry in entries:
        examination = examine(entry, partial(_progress, f"{entry.name:<{width}}"))
        found.append(examination)
        _print(examination, width)
    failed = sum(bool(examination.failures) for examination in found)
    skips = [skip for examination in found for skip in examination.skips]
    if skips:
        print(f"\npairs left out, each by the method's own reason:\n{_table(skips)}")
    passed = len(found) - failed
    print(f"\n{passed} of {len(found)} methods pass all checks, in {time.monotonic() - begun:.0f} s")
    return failed


def _progress(prefix: str, check: str) -> None:
    """Show the check that runs, on a terminal only."""
    if sys.stdout.isatty():
        print(f"\r\x1b[K{prefix}  {check} ...", end="", flush=True)


def _print(examination: Examination, width: int) -> None:
    if sys.stdout.isatty():
        print("\r\x1b[K", end="")
    count = len(examination.failures)
    verdict = "ok" if not count else f"FAILED ({count})"
    left_out = f"  {len(examination.skips)} pairs left out" if examination.skips else ""
    print(f"{examination.method:<{width}}  {verdict:<10}  {examination.seconds:5.1f} s{left_out}", flush=True)
    for failure in examination.failures:
        print(f"  {failure}")
        if failure.details and os.environ.get("KDBENCH_DEBUG"):
            print(failure.details)


def _table(skips: Sequence[Skip]) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for skip in skips:
        rows.setdefault((skip.method, skip.reason), []).append(skip.pair)
    content = [(method, ", ".join(pairs), reason) for (method, reason), pairs in rows.items()]
    return tabulate(
        content, headers=("method", "teacher -> student", "reason"), tablefmt="simple", maxcolwidths=[None, 40, 60]
    )
