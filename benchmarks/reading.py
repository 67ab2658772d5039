"""Processor time of the verbs that read results, on a run directory of ten thousand finished cells.

    python -m benchmarks.reading

The least of three is what counts: others may be at work.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.reporting.large import large_plan, write_large


def main(cells: int = 10_000, times: int = 3) -> int:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        write_large(root, large_plan(cells=cells), cells=cells)
        for name, words in {
            "list": ["list"],
            "table": ["table", "digits", "--out", str(root), "--to", os.devnull],
            "leaderboard": ["leaderboard", "digits", "--out", str(root), "--to", os.devnull],
            "report": ["report", "digits", "--out", str(root), "--to", str(Path(folder) / "report.html")],
        }.items():
            print(f"{name:11} {min(seconds_of(words) for _ in range(times)):6.2f} s", flush=True)
    return 0


def seconds_of(words: Sequence[str]) -> float:
    """Processor time of a command."""
    before = os.times()
    subprocess.run([sys.executable, "-m", "kdbench", *words], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


if __name__ == "__main__":
    sys.exit(main())
