"""disturb.py slurm|time|ray SUITE OUT: run a matrix on an engine, disturb it while it trains, print what was done, end as the run did.

``slurm``: the running jobs are put back into the queue. ``time``: jobs get two minutes, of which submitit takes the last 80
seconds to save them. ``ray``: the second node is killed with all its processes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """A process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(path.parent.name))
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def wait_for_checkpoint(run: subprocess.Popen[bytes], out: Path) -> None:
    """Until a student has been trained for an epoch."""
    deadline = time.monotonic() + 300
    while not list(out.glob("*/*/*--*/*/seed*/checkpoint-*.ckpt")):
        if run.poll() is not None or time.monotonic() > deadline:
            sys.exit("no checkpoint was written")
        time.sleep(0.05)


def main() -> int:
    how, suite, out = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    words = ["run", suite, "--out", str(out), "--device", "cpu", "--on", "ray" if how == "ray" else "slurm"]
    if how == "time":
        words += ["--slurm", "time=2,signal-delay=80"]
    run = subprocess.Popen([sys.executable, "-m", "kdbench.cli.parser", *words])
    if how == "slurm":
        wait_for_checkpoint(run, out)
        queue = subprocess.run(
            ["squeue", "-h", "-r", "-t", "R", "-o", "%i"], capture_output=True, text=True, check=True
        )
        numbers = queue.stdout.split()
        for number in numbers:
            subprocess.run(["scontrol", "requeue", number], check=True)
        print(f"disturbed: {len(numbers)} jobs were put back into the queue", flush=True)
    elif how == "ray":
        wait_for_checkpoint(run, out)
        every = descendants(int(os.environ["SECOND_NODE"]))
        for pid in every:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        print(f"disturbed: the second node was killed with {len(every)} processes", flush=True)
    status = run.wait()
    if how == "time":
        logs = [path.read_text(errors="replace") for path in (out / ".jobs" / "slurm").glob("*_log.out")]
        print(f"disturbed: {sum(text.count('Requeued job') for text in logs)} jobs ran out of time", flush=True)
    resumed = sum(path.read_text().count("resumed after") for path in out.rglob("log.txt"))
    print(f"cells went on from a checkpoint {resumed} times", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
