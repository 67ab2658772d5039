"""A launcher that gives each job a process of its own on this machine: a crash takes one cohort only."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path

from kdbench.launch.job import Event, Job

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class LocalLauncher:
    """See ``Launcher``.

    Args:
        workers: number of processes at a time.
        gpus: number of GPUs; worker k sees GPU k modulo ``gpus`` only.
    """

    def __init__(self, workers: int, gpus: int = 0) -> None:
        self.capacity = workers
        self.gpus = gpus
        self._events: queue.Queue[Event] = queue.Queue()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._slots: dict[str, int] = {}

    def submit(self, job: Job) -> None:
        environment = dict(os.environ)
        environment.update(dict.fromkeys(_THREAD_VARIABLES, str(job.threads)))
        slot = next(n for n in range(self.capacity) if n not in self._slots.values())
        if self.gpus:
            visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
            environment["CUDA_VISIBLE_DEVICES"] = visible[slot % len(visible)] if visible[0] else str(slot % self.gpus)
        process = subprocess.Popen(
            [sys.executable, "-m", "kdbench.launch.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            text=True,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which then ends its workers in order
        )
        self._processes[job.name] = process
        self._slots[job.name] = slot
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(job.to_json() + "\n")
            process.stdin.flush()
        threading.Thread(target=self._watch, args=(job, process), daemon=True).start()

    def poll(self, seconds: float) -> list[Event]:
        events = []
        with contextlib.suppress(queue.Empty):
            events.append(self._events.get(timeout=seconds))
            while True:
                events.append(self._events.get_nowait())
        for event in events:
            if event["event"] == "finished":
                self._processes.pop(event["job"], None)
                self._slots.pop(event["job"], None)
        return events

    def cancel(self) -> None:
        for process in self._processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def _watch(self, job: Job, process: subprocess.Popen[str]) -> None:
        """Pass on the worker's events; when it ends, say how."""
        assert process.stdout is not None
        assert process.stderr is not None
        error, crashed = None, False
        for line in process.stdout:
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if event.get("event") == "error":
                error = event["error"]
            else:
                self._events.put({**event, "job": job.name})
        early = process.stderr.read()
        status = process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):  # a job that the worker did not live to read is still in the buffer
                    stream.close()
        if status and error is None:
            error, crashed = _describe_end(status, early, Path(job.log)), True
        self._events.put({"event": "finished", "job": job.name, "error": error, "crashed": crashed})


def _describe_end(status: int, early: str, log: Path) -> str:
    if status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else str(-status)
        hint = " (often the operating system's reaction to too little memory)" if name == "SIGKILL" else ""
        return f"the worker was ended by signal {name}{hint}"
    lines = [line for line in early.splitlines() if line.strip()]
    if not lines and log.exists():
        lines = [line for line in log.read_text(errors="replace").splitlines()[-20:] if line.strip()]
    return f"the worker ended with status {status}{f': {lines[-1].strip()}' if lines else ''}"
