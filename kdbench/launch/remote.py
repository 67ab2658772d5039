"""What launchers on other machines share: the function that runs there, and the files of a job's events.

Only a job as JSON is sent, and its events come back as lines of JSON in the run directory, which all machines share. What comes
back is never unpickled.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kdbench.errors import KdbenchError
from kdbench.launch.job import Event, Job
from kdbench.launch.local import follow, start_worker
from kdbench.opening import open_file
from kdbench.store.files import write_bytes

#: Seconds that a worker has to save its work before its machine is given back.
SAVE_SECONDS = 60.0


def carry(job: str) -> str:
    """See ``Carry``."""
    return Carry()(job)


class Carry:
    """Do a job, given as JSON, in a process of its own, so that its death is noticed and reported.

    submitit calls ``checkpoint`` when the time is nearly over or the job is pre-empted.
    """

    def __call__(self, text: str) -> str:
        """Returns how it ended, as JSON: ``error``, ``crashed``, ``stopped``, ``full``, ``broken``."""
        job = Job.from_json(text)
        process = self._process = start_worker(job, {})
        try:
            end = follow(job, process, lambda event: None)
        except BaseException:  # the engine cancels the job
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=SAVE_SECONDS)
            process.kill()
            raise
        if end.get("crashed"):  # the worker could not report it itself
            with contextlib.suppress(OSError):
                line = json.dumps({"event": "end", "time": time.time(), **end})
                write_bytes(job.events / f"crash-{os.uname().nodename}-{process.pid}.jsonl", f"{line}\n".encode())
        return json.dumps(end)

    def checkpoint(self, job: str) -> Any:
        """Let the worker save its work; the job is then put into the queue again."""
        import submitit

        process: subprocess.Popen[str] | None = getattr(self, "_process", None)
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            # This is a signal handler: the interrupted code may be waiting for the same process.
            deadline = time.monotonic() + SAVE_SECONDS
            while _is_running(process.pid) and time.monotonic() < deadline:
                time.sleep(0.1)
        return submitit.helpers.DelayedSubmission(Carry(), job)

    def __getstate__(self) -> dict[str, Any]:
        return {}


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


class EventFiles:
    """Reads the files of events of a job as they grow. Incomplete lines and lines that are no events are skipped."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._offsets: dict[Path, int] = {}
        while self.read():  # of earlier attempts
            pass

    def read(self) -> list[Event]:
        """What was added since the last reading."""
        events: list[Event] = []
        with contextlib.suppress(OSError):
            for path in sorted(self.folder.glob("*.jsonl")):
                with open_file(path) as file:
                    file.seek(self._offsets.get(path, 0))
                    raw = file.read(1_000_000)
                whole = raw.rpartition(b"\n")[0]
                self._offsets[path] = self._offsets.get(path, 0) + (len(whole) + 1 if b"\n" in raw else 0)
                events += [event for line in whole.splitlines() if (event := parse_event(line)) is not None]
        return events


def parse_event(line: bytes | str) -> Event | None:
    """An event from its line; None when it is none."""
    with contextlib.suppress(ValueError, RecursionError):
        event = json.loads(line)
        if isinstance(event, dict) and isinstance(event.get("event"), str):
            return event
    return None


def finished(name: str, end: Event) -> Event:
    """The last event of a job, from how it ended; see ``Launcher.poll``."""
    keys = ("error", "crashed", "stopped", "full", "broken")
    return {"event": "finished", "job": name, **{key: end.get(key) for key in keys}}


def check_installed(package: str, extra: str) -> None:
    """Check that an engine is installed, without importing it.

    Raises:
        KdbenchError: saying what to install.
    """
    try:
        found = importlib.util.find_spec(package) is not None
    except ValueError:  # an import of it was blocked
        found = False
    if not found:
        python = os.path.basename(sys.executable)
        raise KdbenchError(f"--on {extra} needs the package {package}: {python} -m pip install 'kdbench[{extra}]'")
