"""A launcher that gives each job a process of its own on this machine: a crash takes one cohort only."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kdbench.errors import counted
from kdbench.launch.job import Event, Job
from kdbench.launch.mps import WITHOUT, can_share, start_service
from kdbench.opening import open_file

#: Seconds that a worker has to save its work when it is asked to end.
GRACE_SECONDS = 30.0
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class LocalLauncher:
    """See ``Launcher``.

    Args:
        workers: number of processes at a time.
        gpus: GPUs as ``$CUDA_VISIBLE_DEVICES`` names them; worker k sees one of them only, k modulo their number. Several
            workers of one GPU share it through MPS where that can be started.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self.capacity = workers
        self.gpus = gpus
        self._events: queue.Queue[Event] = queue.Queue()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._slots: dict[str, int] = {}
        self._heard: dict[str, float] = {}
        self._stalls: dict[str, float] = {}
        self._stalled: set[str] = set()

    def submit(self, job: Job) -> None:
        slot = next(n for n in range(self.capacity) if n not in self._slots.values())
        environment = {"CUDA_VISIBLE_DEVICES": self.gpus[slot % len(self.gpus)]} if self.gpus else {}
        if self.capacity > len(self.gpus) > 0 and can_share(self.gpus):
            # A fault under MPS ends all processes on the GPU: a job that looks for the guilty cell goes without.
            environment |= WITHOUT if job.careful else start_service()
        # Said, so that a worker whose CUDA does not start refuses instead of training on the CPU.
        request = dataclasses.replace(job.request, device="cuda" if self.gpus else "cpu")
        process = start_worker(dataclasses.replace(job, request=request), environment)
        self._processes[job.name] = process
        self._slots[job.name] = slot
        self._heard[job.name] = time.monotonic()
        if job.stall:
            self._stalls[job.name] = job.stall
        threading.Thread(target=self._watch, args=(job, process), daemon=True).start()

    def poll(self, seconds: float) -> list[Event]:
        events = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=seconds))
            while True:
                events.append(self._events.get_nowait())
        for event in events:
            self._heard[event["job"]] = time.monotonic()
            if event["event"] == "finished":
                for known in (self._processes, self._slots, self._heard, self._stalls):
                    known.pop(event["job"], None)
                self._stalled.discard(event["job"])
        self._end_silent()
        return events

    def _end_silent(self) -> None:
        """End workers from which nothing was heard for longer than they would wait themselves: those that were suspended."""
        for name, stall in self._stalls.items():
            if time.monotonic() - self._heard[name] > stall + min(60.0, stall):
                self._stalled.add(name)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._processes[name].pid, signal.SIGKILL)

    def cancel(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()  # it alone: its data workers must live until its work is saved
        deadline = time.monotonic() + GRACE_SECONDS
        try:
            for process in self._processes.values():
                process.wait(timeout=max(0.1, deadline - time.monotonic()))
        except (subprocess.TimeoutExpired, KeyboardInterrupt):  # a second Ctrl-C: at once
            pass
        for process in self._processes.values():
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _watch(self, job: Job, process: subprocess.Popen[str]) -> None:
        """Pass on the worker's events; when it ends, say how."""
        try:
            end = follow(job, process, lambda event: self._events.put({**event, "job": job.name}))
        except Exception as error:  # a log that may not be opened, say: the run waits for an end in any case
            end = {"error": f"{type(error).__name__}: {error}", "crashed": True}
            process.kill()
        if job.name in self._stalled:
            end["error"] = f"nothing was heard of it for {format_minutes(job.stall)}, and it was ended"
        self._events.put({"event": "finished", "job": job.name, **end})


def start_worker(job: Job, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the process of a job and hand the job to it. Its standard input stays open: it ends when that is closed."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "kdbench.launch.worker"],  # -P: a file of the current folder hides no library
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={
            **os.environ,
            **dict.fromkeys(_THREAD_VARIABLES, str(job.threads)),
            **({"CUDA_LAUNCH_BLOCKING": "1"} if job.careful else {}),
            **environment,
        },
        text=True,
        start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends its workers in order
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(job.to_json() + "\n")
        process.stdin.flush()
    return process


def follow(job: Job, process: subprocess.Popen[str], on_event: Callable[[Event], None]) -> Event:
    """Pass on a worker's events until it ends.

    Returns:
        how it ended: ``error``, ``crashed``, ``stopped``, ``full``, ``broken``.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    end: Event | None = None
    log = job.log_file
    before = log.stat().st_size if log.is_file() else 0
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if event.get("event") == "end":
            end = event
        else:
            on_event(event)
    early = process.stderr.read()
    status = process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):  # a job that the worker did not live to read is still in the buffer
                stream.close()
    if end is None and status:
        return {"error": _describe_end(status, early, log, before, job.stall), "crashed": True}
    return {"crashed": False, **{name: (end or {}).get(name) for name in ("error", "stopped", "full", "broken")}}


def format_minutes(seconds: float) -> str:
    """``1800`` to ``30 minutes``."""
    return counted(round(seconds / 60), "minute") if seconds >= 60 else counted(round(seconds), "second")


def _describe_end(status: int, early: str, log: Path, before: int, stall: float) -> str:
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        hint = " (often the operating system's reaction to too little memory)" if name == "SIGKILL" else ""
        return f"the worker was ended by signal {name}{hint}"
    tail = _added_to(log, before)[-100:]
    if status == 1 and any(line.startswith("Timeout (") for line in tail):
        return f"it made no step for {format_minutes(stall)}, and was ended; {log} says where it hung"
    lines = [line for line in early.splitlines() if line.strip()]
    if not lines:
        lines = [line for line in tail[-20:] if line.strip()]
    return f"the worker ended with status {status}{f': {lines[-1].strip()}' if lines else ''}"


def _added_to(log: Path, before: int) -> list[str]:
    """Lines of a log after its first ``before`` bytes, of the last megabyte."""
    with contextlib.suppress(OSError), open_file(log) as file:
        file.seek(max(before, file.seek(0, os.SEEK_END) - (1 << 20)))
        return file.read().decode(errors="replace").splitlines()
    return []
